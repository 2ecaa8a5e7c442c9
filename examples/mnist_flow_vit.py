"""A flow that says where it ends: python examples/mnist_flow_vit.py mnist_flow_vit.safetensors [digits.png]

Its clock runs the other way (1 is data), it says the clean picture and not a velocity, its pixels lie in [0, 1], and its
eleventh label stands for none: each is a word to `ebb.load`. Weights: sofia-dominguezc/MNIST-diffusion, MIT.
"""

import sys

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import ebbtide as ebb


class ViT(nn.Module):
    def __init__(self, wide: int = 64) -> None:
        super().__init__()
        layer = lambda: nn.TransformerEncoderLayer(wide, 4, 4 * wide, activation="gelu", batch_first=True)  # noqa: E731
        self.patch_embed, self.unpatch = nn.Conv2d(1, wide, 7, 7), nn.ConvTranspose2d(wide, 1, 7, 7)
        self.pos_embed, self.y_encoder = nn.Parameter(torch.zeros(1, 16, wide)), nn.Embedding(11, 2 * wide)
        self.transformer = nn.Sequential(*(layer() for _ in range(4)))

    def forward(self, x: Tensor, clock: Tensor, label: Tensor) -> Tensor:
        angle = clock[:, None] * torch.logspace(0, -4, 64)
        extra = torch.cat([angle.sin(), angle.cos(), self.y_encoder(label)], 1).unflatten(1, (4, 64))  # 4 more tokens
        tokens = torch.cat([self.patch_embed(x).flatten(2).mT + self.pos_embed, extra], 1)
        return self.unpatch(self.transformer(tokens)[:, :16].mT.unflatten(2, (4, 4)))


net = ViT().eval().requires_grad_(False)
net.load_state_dict(load_file(sys.argv[1]))
said = {"process": "flow", "predicts": "x0", "clock": "reversed", "nulls": {"label": 10}, "labels": 10}
about = {"name": "mnist-flow-vit", "medium": "image", "decode": lambda x: 2 * x - 1}
model = ebb.load(net, like=torch.zeros(1, 28, 28), **said, **about)
plan = ebb.Plan(solve="dpmpp-2m", grid={"name": "linear", "steps": 20}, guide={"name": "cfg", "scale": 2.0})
digits = ebb.sample(model, plan, cond=[k % 10 for k in range(80)], n=80)
digits.save([*sys.argv, "digits.png"][2], overwrite=True)
