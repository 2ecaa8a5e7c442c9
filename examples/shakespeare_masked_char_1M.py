"""A masked model of characters: python examples/shakespeare_masked_char_1M.py shakespeare_masked_char_1M.safetensors

Tokens are ASCII, and 0, one of the vocabulary's own, is the mask. Row k of its 128 rows of time hides (k + 1) / 128 of a
text, and the clock counts rows. Weights: ZimengXiong/distilled-tiny-diffusion, no licence stated."""

import sys

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import rms_norm, scaled_dot_product_attention

import ebbtide as ebb

w = load_file(sys.argv[1])
norm = lambda v: rms_norm(v, v.shape[-1:])  # noqa: E731


def turned(v: Tensor) -> Tensor:  # by its place, then brought to length one
    (a, b), angle = v.chunk(2, -1), torch.arange(v.shape[-2])[:, None] * 1e4 ** (-torch.arange(16) / 16)
    return norm(torch.cat([a * angle.cos() + b * angle.sin(), b * angle.cos() - a * angle.sin()], -1))


def transformer(x: Tensor, clock: Tensor) -> Tensor:
    h = norm(w["token_emb.weight"][x] + w["time_emb.weight"][clock.round().long()][:, None])
    for at in [f"blocks.{j}" for j in range(5)]:
        q, k, v = ((norm(h) @ w[f"{at}.attn.c_{m}.weight"].T).unflatten(-1, (4, 32)).transpose(1, 2) for m in "qkv")
        mixed = scaled_dot_product_attention(turned(q), turned(k), v).transpose(1, 2).flatten(2)
        h = h + mixed @ w[f"{at}.attn.c_proj.weight"].T
        h = h + (norm(h) @ w[f"{at}.mlp.c_fc.weight"].T).relu() ** 2 @ w[f"{at}.mlp.c_proj.weight"].T
    return norm(h) @ w["output_head.weight"].T


said = {"predicts": "logits", "clock": "train-index", "steps": 128, "like": torch.zeros(128).long(), "medium": "text"}
masked = {"name": "masked", "vocab": 128, "mask": 0}
model = ebb.load(transformer, process=masked, decode=lambda x: "".join(map(chr, x)), **said)
text = "First Citizen:\nWe are accounted poor citizens.\n\nMENENIUS:\n".ljust(128, "\0")
plan = ebb.Plan(start="given", solve="confidence", grid={"name": "linear", "steps": 64})
play = ebb.sample(model, plan, cond={"start": torch.tensor([[*map(ord, text)]])})
print(play.text()[0])
