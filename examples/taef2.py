"""Latents and their decoder: python examples/taef2.py taef2_decoder.safetensors [pictures.npz or folder [copies.png]]
FLUX.2's tiny autoencoder (madebyollin/taesd, MIT; its encoder lies beside) holds 8 x 8 pixels in 32 numbers. The model needs
no net: the exact denoiser of the latents of nine pictures. What it draws are latents, and `decode` shows them."""

import sys

from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

import ebbtide as ebb
from ebbtide.denoise.data import Empirical
from ebbtide.denoise.model import process
from ebbtide.zoo import data, reference


def coder(w: dict[str, Tensor], x: Tensor, up: bool) -> Tensor:
    def conv(at: int | str, x: Tensor, stride: int = 1) -> Tensor:
        return F.conv2d(x, weight := w[f"{at}.weight"], w.get(f"{at}.bias"), stride, weight.shape[-1] // 2)

    for at in sorted({int(name.split(".")[0]) for name in w}):
        if f"{at}.pool.0.weight" in w:
            h = F.group_norm(conv(f"{at}.pool.0", x), 4, w[f"{at}.pool.1.weight"], w[f"{at}.pool.1.bias"])
            x = x + conv(f"{at}.pool.3", h.relu())
        if f"{at}.conv.0.weight" in w:
            x = (x + conv(f"{at}.conv.4", conv(f"{at}.conv.2", conv(f"{at}.conv.0", x).relu()).relu())).relu()
        elif f"{at}.bias" in w:
            x = conv(at, x).relu() if up and at == 1 else conv(at, x)
        else:
            x = conv(at, F.interpolate(x, scale_factor=2.0)) if up else conv(at, x, stride=2)
    return x


given = dict(enumerate(sys.argv))
pictures = data.load_pictures(given.get(2, reference.FOLDER / "digits-drawn.npz"), 64).x[:9].expand(-1, 3, -1, -1)
down, up = (load_file(given[1].replace("decoder", name)) for name in ("encoder", "decoder"))
latents = coder(down, (pictures + 1) / 2, up=False)
decode = lambda z: 2 * coder(up, 3 * (z / 3).tanh(), up=True) - 1  # noqa: E731
model = ebb.load(Empirical(process("flow"), latents), like=latents[0], medium="image", decode=decode)
(copies := ebb.sample(model, n=9)).save(given.get(3, "copies.png"), overwrite=True)
