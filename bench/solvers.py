"""What calls buy: ebbtide's solvers and grids against the schedulers of diffusers, at equal calls from the same starts.

    python bench/solvers.py                        all of it, about two hours on one thread
    python bench/solvers.py mixture digits         some: mixture, digits, grid, steps, memory

mixture   25 Gaussians in 64 dimensions, the 1000 training steps of DDPM, float64, exact predictions. Reference: DOP853 at 1e-9
          from the same starts at the last training step, down to the data. Error: root mean square of x - x*.
          Diffusers: every deterministic scheduler that takes eps, each with every spacing and every choice of levels; it is
          asked at the exact level it holds, not at the rounded step. Ours: every deterministic solver on every grid, and the
          best of them on grids optimised from other starts.                               bar 0.7 of their best, 1 at 50 calls
digits    the shipped networks (digits, digits-unet, digits-eps) at 8 and 12 calls, Frechet distance of the classifier's
          features to those of the training pictures. Each side's plan is chosen on one set of starts and measured on
          another; with either side's noise where it draws some.                          bar 0.9 of their best
grid      what `ebb grid digits` does: its seconds, and its error at 8 calls on fresh starts.    bars 120 s; 1 of either
steps     one step beside the network for every solver that diffusers has too, as in overhead.py  bars 0.8, stochastic 1.1
memory    tensors like x that a solver keeps between steps, against the least that its publication needs      bar 1
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

import ebbtide as ebb
import figures
import overhead
import schedulers
from ebbtide.api import begin
from ebbtide.core.plan import Plan
from ebbtide.denoise.exact import GaussianMixture
from ebbtide.denoise.model import Model
from ebbtide.denoise.model import process as make_process
from ebbtide.measure import convergence as cv
from ebbtide.measure import survey as sv
from ebbtide.tune.grids import optimise_grid

CALLS = (8, 10, 15, 20, 50)
STARTS, SEED, OTHER = 64, 0, 10_000
TABLE = {"beta_schedule": "linear", "steps": 1000}
# beside every solver as it comes: the exponential Adams rule through four slopes, set right, of each kind
ADAMS = [
    {"name": "eab", "terms": 4, "space": space, "variable": variable, "corrector": True}
    for space, variable in (("data", "log-snr"), ("noise", "sigma"), ("noise", "time"))
]
# beside the pairs nearest the flow: what leaves it, to another law that may lie nearer the data
GRIDS: dict[str, tuple[dict[str, Any], ...]] = {
    "flow": (
        {"name": "shift", "shift": 2.0},
        {"name": "shift", "shift": 2.5},
        {"name": "shift", "shift": 3.0},
        {"name": "cosine"},
    ),
    "eps": ({"name": "log-snr"}, {"name": "karras"}, {"name": "beta"}),
}
OTHERS: dict[str, tuple[tuple[dict[str, Any], dict[str, Any]], ...]] = {
    "flow": (
        ({"name": "dpmpp-2m-sde"}, {"name": "shift", "shift": 2.0}),
        ({"name": "dpmpp-2m-sde"}, {"name": "cosine"}),
        ({"name": "evodiff", "mix": 0.0}, {"name": "cosine"}),
    ),
    "eps": (
        ({"name": "dpmpp-2m-sde"}, {"name": "log-snr"}),
        ({"name": "evodiff", "mix": 0.0}, {"name": "karras", "rho": 4.0}),
        ({"name": "evodiff", "mix": 0.0}, {"name": "clock", "spacing": "linspace"}),
    ),
}
THEIRS = {"flow": (schedulers.flow,), "eps": (schedulers.diffusion, schedulers.chance)}
DIGITS = ("digits", "digits-unet", "digits-eps")


def leaving(kind: str) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Solvers that draw noise or shrink it, on grids that suit them, for networks that predict `kind`."""
    drawing: list[dict[str, Any]] = [
        {"name": "sa-solver", "tau": tau, "between": [0.0, first]}
        for tau in (0.6, 1.0, 1.5, 2.0)
        for first in (0.7, 0.8, 1.0)
    ]
    return [*((solve, grid) for solve in drawing for grid in GRIDS[kind]), *OTHERS[kind]]


def rms(x: Tensor) -> float:
    """Root mean square; infinite where it is not a number."""
    return float(x.double().square().mean().sqrt().nan_to_num(torch.inf))


def said(plan: Plan) -> str:
    """Solver and grid."""
    return f"{sv.called(plan.solve)} on {sv.called({k: v for k, v in plan.grid.items() if k != 'times'})}"


# -------------------------------------------------------------------- the exact mixture


def mixture() -> Model:
    """25 Gaussians of deviation 0.3 in 64 dimensions, their means and weights drawn."""
    draw = torch.Generator().manual_seed(0)
    means = torch.randn(25, 64, generator=draw, dtype=torch.float64)
    weights = (0.5 + torch.rand(25, generator=draw, dtype=torch.float64)).tolist()
    p: Any = make_process("vp-table", **TABLE)
    return ebb.load(GaussianMixture(p, weights, means, 0.3**2), like=torch.zeros(64, dtype=torch.float64))


def exact(model: Model, start: Tensor) -> Tensor:
    """The flow from t = 1 to the data by DOP853, in x / a against log sigma, where nothing is stiff."""
    from scipy.integrate import solve_ivp

    p: Any = model.denoiser.process

    def slope(level: float, flat: np.ndarray) -> np.ndarray:
        t = p.time(torch.tensor([-level], dtype=torch.float64))
        x = p.a(t) * torch.from_numpy(flat.reshape(start.shape))
        x0 = model.denoiser(x, t.expand(len(x)), {}).mean
        return ((x - p.a(t) * x0) / p.a(t)).numpy().ravel()  # sigma eps = d(x / a) / d log sigma

    one = torch.ones(1, dtype=torch.float64)
    levels = (-float(p.lam(one)), np.log(1e-9))
    found = solve_ivp(slope, levels, (start / p.a(one)).numpy().ravel(), "DOP853", rtol=1e-9, atol=1e-9)
    return torch.from_numpy(found.y[:, -1].reshape(start.shape))


def best_of_theirs(model: Model, start: Tensor, truth: Tensor, calls: int) -> tuple[float, str]:
    """The least error of any scheduler of diffusers."""
    p: Any = model.denoiser.process

    def network(x: Tensor, t: Tensor) -> Tensor:
        t = t.expand(len(x))
        out: Tensor = p.from_x0("eps", model.denoiser(x, t, {}).mean, x, t, {})
        return out

    least, which = float("inf"), ""
    for config in schedulers.diffusion():
        steps = schedulers.within(config, calls)
        if steps is None:
            continue
        error = rms(schedulers.ends(config, steps, p, network, start) - truth)
        if error < least:
            least, which = error, schedulers.titled(config)
    return least, which


def surveyed(setting: sv.Setting, reference: cv.Reference, calls: int) -> list[cv.Row]:
    """Every solver on every grid, the least error first."""
    plain = sv.survey(setting).pairs
    grids = {sv.called(pair.grid): pair.grid for pair in plain}.values()
    grids = [*grids, {"name": "clock", "spacing": "leading"}]
    pairs = [*plain, *(sv.Pair(solve, grid) for solve in ADAMS for grid in grids)]
    rows = [cv.measure(setting, reference, pair, calls) for pair in pairs]
    return sorted((r for r in rows if r is not None), key=lambda r: r.error)


def best_of_ours(model: Model, truth: Tensor, calls: int) -> tuple[float, str]:
    """The least error of any solver on any grid, and of the ten best solvers of few calls on a grid of their own."""
    setting = sv.Setting(model, Plan(), None, STARTS, SEED)
    rows = surveyed(setting, cv.Reference(truth, 0.0, 0.0, 0), calls)
    scale = rms(truth)
    least, which = rows[0].error * scale, rows[0].pair.name
    solvers = {sv.called(r.pair.solve): r for r in reversed(rows)}
    for row in sorted(solvers.values(), key=lambda r: r.error)[: 10 if calls < 50 else 0]:
        plan = optimise_grid(model, Plan(solve=row.pair.solve), row.steps, n=32, seed=OTHER, candidates=120, trials=400)
        x, used = setting.run(plan)
        error = rms(x - truth)
        if error < least and used <= calls:
            least, which = error, f"{sv.called(row.pair.solve)} on its own grid"
    return least, which


def on_mixture() -> Iterator[figures.Figure]:
    """Errors at equal calls."""
    model = mixture()
    _, state = begin(model, Plan(), n=STARTS, seed=SEED)
    truth = exact(model, state.x)
    for calls in CALLS:
        theirs, their = best_of_theirs(model, state.x, truth, calls)
        ours, our = best_of_ours(model, truth, calls)
        made = f"{ours:.2e}, {our} / {theirs:.2e}, {their}"
        yield figures.Figure(f"mixture, {calls} calls", ours / theirs, 0.7 if calls < 50 else 1.0, said=made)


# -------------------------------------------------------------------- the shipped digits


def distance(pictures: Tensor) -> float:
    """The Frechet distance of pictures to the training pictures, in the classifier's features."""
    from ebbtide.measure.metrics import frechet, moments
    from ebbtide.zoo import reference

    truth = reference.load()
    if not bool(pictures.isfinite().all()):  # some of their rules divide by zero at the data
        return float("inf")
    return frechet(*moments(reference.features(pictures.float().clamp(-1, 1))), truth["train.mean"], truth["train.cov"])


def chosen(plans: dict[str, Callable[[int, int], Tensor]]) -> tuple[float, str]:
    """The plan of the least distance on some starts, and its distance on others."""
    few = {name: distance(run(200, OTHER)) for name, run in plans.items()}
    once = {found: name for name, found in reversed(few.items())}  # some configs are one rule by several names
    finalists = [once[found] for found in sorted(once)[:4]]
    more = {name: distance(plans[name](600, 2 * OTHER)) for name in finalists}
    winner = min(more, key=lambda name: more[name])
    return distance(plans[winner](3000, 5 * OTHER)), winner


def labels(n: int) -> list[int]:
    """The classes in turn."""
    return [k % 10 for k in range(n)]


def on_digits() -> Iterator[figures.Figure]:
    """Frechet distances at equal calls, for each model of digits."""
    for drawn, calls in itertools.product(DIGITS, (8, 12)):
        model = ebb.load(drawn)
        network: Any = model.denoiser
        kind: str = network.predicts
        theirs, ours = {}, {}
        for config in itertools.chain.from_iterable(family() for family in THEIRS[kind]):
            steps = schedulers.within(config, calls)
            if steps is not None:
                theirs[schedulers.titled(config)] = _theirs(config, steps, model, kind)
        setting = sv.Setting(model, Plan(), labels(32), 32, OTHER)
        reference = cv.reference(setting, 1e-3, 64, 256)
        rows = surveyed(setting, reference, calls)
        for row in rows[:4]:
            ours[row.pair.name] = _ours(row.plan(Plan()), model)
        for solve, grid in leaving(kind):
            plan = Plan(solve=solve, grid={**grid, "steps": calls})
            ours[f"{sv.called(solve)} on {sv.called(grid)}"] = _ours(plan, model)
        best = cv.best(rows, 0)[0]
        steps = next(row.steps for row in rows if row.pair == best)
        made = optimise_grid(model, Plan(solve=best.solve), steps, cond=labels(32), n=32, seed=OTHER)
        ours[f"{sv.called(best.solve)} on its own grid"] = _ours(made, model)
        (near, our), (far, their) = chosen(ours), chosen(theirs)
        told = f"{near:.3f}, {our} / {far:.3f}, {their}"
        yield figures.Figure(f"{drawn}, {calls} calls", near / far, 0.9, said=told)


def _ours(plan: Plan, model: Model) -> Callable[[int, int], Tensor]:
    return lambda n, seed: ebb.sample(model, plan, cond=labels(n), n=n, seed=seed).x


def _theirs(config: schedulers.Config, steps: int, model: Model, kind: str) -> Callable[[int, int], Tensor]:
    p: Any = model.process

    def run(n: int, seed: int) -> Tensor:
        _, state = begin(model, Plan(), labels(n), n, seed)
        torch.manual_seed(seed)  # theirs draw from the one generator of torch

        def network(x: Tensor, t: Tensor) -> Tensor:
            t = t.expand(len(x))
            x = x.float()
            out: Tensor = p.from_x0(kind, model.denoiser(x, t, state.cond).mean, x, t, {})
            return out

        return schedulers.ends(config, steps, p, network, state.x)

    return run


# -------------------------------------------------------------------- grids found for a model


def on_grid() -> Iterator[figures.Figure]:
    """Eight steps of DPM-Solver++(2M) for each model of digits, found on 32 starts, on 64 fresh ones."""
    plan = Plan(solve="dpmpp-2m")
    for drawn in DIGITS:
        model = ebb.load(drawn)
        began = time.perf_counter()
        found = optimise_grid(model, plan, 8, cond=labels(32), n=32, seed=OTHER)
        yield figures.Figure(f"{drawn}, finding a grid of 8 steps", time.perf_counter() - began, 120, unit="s")
        setting = sv.Setting(model, plan, labels(64), 64, SEED)
        truth = cv.reference(setting, 1e-3, 64, 256).x
        mine = cv.distance(setting.run(found)[0], truth)
        for name in ("karras", "log-snr"):
            other = cv.distance(setting.run(plan.replace(grid={"name": name, "steps": 8}))[0], truth)
            yield figures.Figure(f"{drawn}, own grid / {name}", mine / other, 1.0, said=f"{mine:.4f} / {other:.4f}")


# -------------------------------------------------------------------- memory

# tensors like x: a rule through k slopes keeps k - 1, a corrector one more
LEAST: dict[str, tuple[dict[str, Any], int]] = {
    "euler": ({}, 0),
    "dpmpp-2m": ({}, 1),
    "dpmpp-2m-sde": ({}, 1),
    "dpmpp-3m": ({}, 2),
    "dpmpp-3m-sde": ({}, 2),
    "res-multistep": ({}, 1),
    "deis": ({"order": 3}, 2),
    "lms": ({"order": 4}, 3),
    "ipndm": ({"terms": 4}, 3),
    "pndm": ({"terms": 4}, 3),
    "ghvb": ({"terms": 4}, 3),
    "unipc": ({"predictor": 3}, 3),
    "eab": ({"terms": 3}, 2),
    "sa-solver": ({}, 3),
    "er-sde": ({}, 2),
    "heun": ({}, 0),
    "dpm-solver": ({}, 0),
}


def on_memory() -> Iterator[figures.Figure]:
    """What stays in the state after six steps."""
    process: Any = make_process("vp-linear")
    model = ebb.load(overhead.Trivial(process), like=torch.zeros(4, 64, 64))
    for name, (params, least) in LEAST.items():
        plan = Plan(solve={"name": name, **params}, grid={"name": "log-snr", "steps": 12})
        loop, state = begin(model, plan, n=2)
        for _ in range(6):
            state = loop.step(state).state
        kept = sum(v.numel() for m in state.memory["solve"].values() for v in _tensors(m)) / state.x.numel()
        yield figures.Figure(
            f"memory, {sv.called(plan.solve)}", round(kept, 2), least + 0.01, unit="x", said=f"least {least}"
        )


def _tensors(memory: Any) -> list[Tensor]:
    return [memory] if isinstance(memory, Tensor) else [v for m in memory.values() for v in _tensors(m)]


SECTIONS = {"mixture": on_mixture, "digits": on_digits, "grid": on_grid, "memory": on_memory}


def main() -> int:
    """The command line."""
    parser = figures.parser(__doc__)
    parser.add_argument(
        "sections", nargs="*", default=[*SECTIONS, "steps"], help="mixture, digits, grid, steps, memory"
    )
    given = parser.parse_args()
    torch.set_num_threads(1)
    found: list[figures.Figure] = []
    for name in given.sections:
        found += overhead.solvers(9, "x0") if name == "steps" else SECTIONS[name]()
    return figures.report(f"Solvers ({figures.versions()})", found, given.json)


if __name__ == "__main__":
    raise SystemExit(main())
