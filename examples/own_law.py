"""A model without weights: a law whose every denoising answer is a closed form, and solvers held against the truth.

    python examples/own_law.py

The data is a mixture of three Gaussians in the plane. Its probability flow is solved with ever more steps, and the error of
each solver against a very fine run falls by its order: twofold for euler, fourfold for heun and dpmpp-2m.
"""

from __future__ import annotations

import torch

import ebbtide as ebb
from ebbtide.denoise.exact import GaussianMixture
from ebbtide.denoise.model import process


def main() -> dict[str, list[float]]:
    """Print the errors; gives them by solver."""
    torch.set_num_threads(1)
    means = torch.tensor([[2.0, 0.0], [-1.0, 1.5], [-1.0, -1.5]], dtype=torch.float64)
    law = GaussianMixture(process("vp-cosine"), [0.5, 0.3, 0.2], means, 0.2)
    model = ebb.load(law, like=torch.zeros(2, dtype=torch.float64))

    def draw(solve: str, steps: int) -> torch.Tensor:
        times = torch.linspace(0.98, 0.02, steps + 1, dtype=torch.float64).tolist()
        return ebb.sample(model, ebb.Plan(solve=solve, grid={"name": "explicit", "times": times}), n=64).x

    truth = draw("heun", 600)
    errors: dict[str, list[float]] = {}
    for solve in ("euler", "heun", "dpmpp-2m"):
        errors[solve] = [float((draw(solve, n) - truth).square().mean().sqrt()) for n in (20, 40, 80, 160)]
        print(f"{solve:9s}", "  ".join(f"{e:.2e}" for e in errors[solve]))
    return errors


if __name__ == "__main__":
    main()
