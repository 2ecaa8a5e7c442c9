"""A DDPM on a discrete clock: python examples/ddpm_unet_mnist_small.py ddpm_unet_mnist_small.safetensors [digits.png]
It says eps; its clock counts rows of a cosine table. The grid asks at rows, none near the last: no signal is left there."""

import sys

import torch
from safetensors.torch import load_file
from torch.nn import functional as F

import ebbtide as ebb

w = load_file(sys.argv[1])  # of MuyazRJ/mnist-diffusion-unet, no licence stated


def unet(x: torch.Tensor, clock: torch.Tensor) -> torch.Tensor:
    of = lambda name: (w[f"{name}.weight"], w[f"{name}.bias"])  # noqa: E731
    angle = clock[:, None] * 1e4 ** (-torch.arange(32) / 32)
    e = F.linear(F.silu(F.linear(torch.cat([angle.sin(), angle.cos()], 1), *of("embed.0"))), *of("embed.2"))

    def stage(name: str, x: torch.Tensor) -> torch.Tensor:
        for at in (f"{name}.blocks.0", f"{name}.blocks.1"):
            h = F.conv2d(F.group_norm(x, min(8, x.shape[1]), *of(f"{at}.gn1")), *of(f"{at}.conv1"), padding=1)
            h = F.silu(h) + F.linear(e, *of(f"{at}.linear"))[..., None, None]
            h = F.conv2d(F.group_norm(h, min(8, h.shape[1]), *of(f"{at}.gn2")), *of(f"{at}.conv2"), padding=1)
            x = F.silu(h + (F.conv2d(x, *of(f"{at}.skip")) if f"{at}.skip.weight" in w else x))
        return x

    half = stage("enc2", F.conv2d(fine := stage("enc1", x), *of("down1"), stride=2, padding=1))
    q, k, v = (F.conv2d(half, *of(f"attn16.{m}")).flatten(2).mT for m in "qkv")
    half = half + w["attn16.gamma"] * F.scaled_dot_product_attention(q, k, v).mT.unflatten(2, (14, 14))
    coarse = stage("bottleneck", F.conv2d(half, *of("down2"), stride=2, padding=1))
    half = stage("dec2", torch.cat([F.conv_transpose2d(coarse, *of("up2"), stride=2, padding=1), half], 1))
    fine = stage("dec1", torch.cat([F.conv_transpose2d(half, *of("up1"), stride=2, padding=1), fine], 1))
    return F.conv2d(fine, *of("final"))


said = {"predicts": "eps", "clock": "train-index", "like": torch.zeros(1, 28, 28), "medium": "image"}
model = ebb.load(unet, process={"name": "vp-table", "beta_schedule": "squaredcos_cap_v2"}, **said)
plan = ebb.Plan(solve="dpmpp-2m", grid={"name": "clock", "steps": 25, "spacing": "leading"})
(digits := ebb.sample(model, plan, n=40)).save([*sys.argv, "digits.png"][2], overwrite=True)
