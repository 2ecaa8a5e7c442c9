"""Caches inside networks: what they save in time, and what they cost in quality, side by side with peers.

    python bench/caches.py [digits] [peer] [--tools ../shared/tools/tiny_pipelines.py] [--json]

digits    deepcache at interval 3 on digits-unet, 50 Euler steps: the time of a run of 64 over that with every step whole, the
          runs taking turns; the Frechet distance of 3000 digits to the training pictures, over that of the same 3000 with
          every step whole                                                     bars 1 / 1.6, 1.1
peer      the package DeepCache (0.1.1, `pip install deepcache`) on a small Stable Diffusion pipeline, 20 steps of DDIM
          under guidance, against ours attached to it: the largest gap of their pictures, the time of a call
          over theirs, and over ours without any cache                         bars 1e-4, 1
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import ebbtide as ebb
import figures
from attach import TOOLS, tiny
from solvers import distance, labels

INTERVAL, STEPS = 3, 50
SPEC = {"name": "deepcache", "interval": INTERVAL}


def on_digits(turns: int, tools: Path) -> Iterator[figures.Figure]:
    """Time and Frechet distance on the shipped UNet."""
    model = ebb.load("digits-unet")
    whole = ebb.Plan(grid={"name": "linear", "steps": STEPS})
    short = whole.replace(network=[SPEC])

    def run(plan: ebb.Plan, n: int, seed: int = 0) -> Tensor:
        return ebb.sample(model, plan, cond=labels(n), n=n, seed=seed).x

    sides: dict[str, Callable[[], Any]] = {"whole": lambda: run(whole, 64), "short": lambda: run(short, 64)}
    taken = figures.interleaved(sides, turns, each=1)
    yield figures.Figure(f"digits-unet, interval {INTERVAL}, time", taken["short"] / taken["whole"], 1 / 1.6)
    near, far = (distance(run(plan, 3000, 7)) for plan in (short, whole))
    told = f"{near:.3f} / {far:.3f}"
    yield figures.Figure(f"digits-unet, interval {INTERVAL}, Frechet distance", near / far, 1.1, said=told)


def small(tools: Path) -> Any:
    """A Stable Diffusion pipeline with random weights whose UNet is what the time goes into."""
    from diffusers import UNet2DConditionModel

    pipe = tiny(tools, "sd")
    torch.manual_seed(0)
    pipe.unet = UNet2DConditionModel(
        sample_size=32, block_out_channels=(32, 64, 128), layers_per_block=2, norm_num_groups=8, cross_attention_dim=32,
        attention_head_dim=8, down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    ).eval()  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def on_peer(turns: int, tools: Path) -> Iterator[figures.Figure]:
    """Pictures and time against the package."""
    from DeepCache import DeepCacheSDHelper

    from ebbtide.interop.schedulers import read

    steps = 20

    def call(pipe: Any) -> Tensor:
        g = torch.Generator().manual_seed(0)
        more = {"num_inference_steps": steps, "height": 64, "width": 64, "guidance_scale": 3.0}
        out: Tensor = pipe("low newer", generator=g, output_type="pt", **more).images
        return out

    theirs, plain = small(tools), small(tools)
    helper = DeepCacheSDHelper(pipe=theirs)
    helper.set_params(cache_interval=INTERVAL, cache_branch_id=0)
    helper.enable()
    plan = read(plain.scheduler, steps).plan
    ours, bare = ebb.attach(plan.replace(network=[SPEC]), small(tools)), ebb.attach(plan, small(tools))
    gap = float((call(ours) - call(theirs)).abs().max())
    yield figures.Figure("gap to DeepCache's pictures", gap, 1e-4, unit="")
    sides = {"ours": lambda: call(ours), "theirs": lambda: call(theirs), "whole": lambda: call(bare)}
    taken = figures.interleaved(sides, turns, each=1)
    told = " / ".join(f"{1e3 * taken[k]:.1f} ms" for k in ("ours", "theirs", "whole"))
    yield figures.Figure("time of a call, over DeepCache's", taken["ours"] / taken["theirs"], 1.0, said=told)
    yield figures.Figure("time of a call, over ours without it", taken["ours"] / taken["whole"])


SECTIONS = {"digits": on_digits, "peer": on_peer}


def main() -> int:
    """The command line."""
    parser = figures.parser(__doc__)
    parser.add_argument("sections", nargs="*", default=list(SECTIONS), help="digits, peer")
    parser.add_argument("--turns", type=int, default=7, help="how often each side runs")
    parser.add_argument("--tools", type=Path, default=TOOLS, help="where the small pipelines are built")
    given = parser.parse_args()
    torch.set_num_threads(1)
    found = [f for name in given.sections for f in SECTIONS[name](given.turns, given.tools)]
    return figures.report(f"Caches ({figures.versions()})", found, given.json)


if __name__ == "__main__":
    raise SystemExit(main())
