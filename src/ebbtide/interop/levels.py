"""The times of diffusers' schedulers: the process that a config names, and the grid that its spacing and levels make.

Source   the schedulers of huggingface/diffusers 0.42 (Apache-2.0): their spacings and lists of levels
Differs  levels are float64; a last step that repeats the level before it is left out; DDIM's and PNDM's steps end where the
         next begins, also where the number of steps does not divide the clock.
"""

from __future__ import annotations

import math
from typing import Any, get_args

import torch
from torch import Tensor

from ebbtide.core.errors import EbbError
from ebbtide.grid.beta import beta_quantile
from ebbtide.interop.fields import LEVELS
from ebbtide.process.table import Schedule, VPTable
from ebbtide.solve.dpm_solver import fast


class Times:
    """Process and grid of one config whose fields are all known; `notes` are told to its user."""

    def __init__(self, kind: str, c: dict[str, Any], steps: int, mu: float | None) -> None:
        self.kind, self.c, self.n, self.mu = kind, c, steps, mu
        self.notes: list[str] = []
        self.clock = int(c["num_train_timesteps"])
        self.flow = kind.startswith("FlowMatch") or bool(c.get("use_flow_sigmas"))
        self.edm = kind.startswith("EDM")
        self.process = self._process()

    def _no(self, field: str, why: str) -> EbbError:
        return EbbError(f"{self.kind}, {field}={self.c[field]!r}: {why}.")

    # ------------------------------------------------------------ process

    def _process(self) -> dict[str, Any]:
        c = self.c
        if self.flow:
            return {"name": "flow"}
        if self.edm:
            return {"name": "edm", "sigma_max": c["sigma_max"]}
        if self.kind == "IPNDMScheduler":
            if c["trained_betas"] is not None:
                raise self._no("trained_betas", "this class keeps noise levels there; leave it out")
            return {"name": "vp-cosine", "offset": 0.0}
        out: dict[str, Any] = {"name": "vp-table", "steps": self.clock}
        if c["trained_betas"] is not None:
            return {**out, "betas": list(c["trained_betas"]), **self._terminal()}
        if c["beta_schedule"] not in (known := get_args(Schedule)):
            raise self._no("beta_schedule", f"known are {', '.join(known)}; or give trained_betas")
        if c["beta_schedule"] == "squaredcos_cap_v2":
            return {**out, "beta_schedule": "squaredcos_cap_v2", **self._terminal()}
        betas = {k: c[k] for k in ("beta_schedule", "beta_start", "beta_end")}
        return {**out, **betas, **self._terminal()}

    def _terminal(self) -> dict[str, Any]:
        return {"zero_terminal": True} if self.c.get("rescale_betas_zero_snr") else {}

    # ------------------------------------------------------------ times

    def table(self) -> Tensor:
        """sigma of every train step, float64."""
        made = {k: v for k, v in self.process.items() if k != "name"}
        return VPTable(**made).rows.exp()

    def grid(self) -> dict[str, Any]:
        if self.edm:
            return self._edm_grid()
        if self.kind.startswith("FlowMatch"):
            return self._flow_grid()
        if self.flow:
            return self._shifted_grid()
        if self.kind == "IPNDMScheduler":
            c = (math.pi / 2 * torch.linspace(1, 0, self.n + 1, dtype=torch.float64)).sin() ** 2
            return _times(2 / math.pi * c.asin())
        if self.kind == "LCMScheduler":
            return self._consistent_grid()
        return self._table_grid()

    def listed(self, values: list[float], clock: bool) -> dict[str, Any]:
        """The grid of a list in place of the config's own spacing: levels, or the scheduler's times where `clock`."""
        chosen = next((k for k in (*LEVELS, "use_lu_lambdas") if self.c.get(k)), None)
        if chosen is not None:
            raise self._no(chosen, "a list of times stands in its place; set it to False")
        every = torch.tensor(values, dtype=torch.float64)
        if self.flow:
            return self._flow_list(every / self.clock if clock else every)
        if not clock:
            return _sigmas(every)
        if self.edm or self.kind in ("IPNDMScheduler", "DPMSolverSinglestepScheduler"):
            raise EbbError(f"{self.kind} takes no list of timesteps here; give it a number of steps.")
        times, last = (every + 1) / self.clock, 0.0 if self._ends_in_data() else 1 / self.clock
        return _times(torch.cat([times, torch.tensor([last], dtype=torch.float64)]))

    def _flow_list(self, every: Tensor) -> dict[str, Any]:
        shift = self._strength()
        if shift is None:
            raise self._no("use_dynamic_shifting", "a list is shifted by mu, as the pipeline does; give it")
        every = shift * every / (1 + (shift - 1) * every)
        if self.c.get("shift_terminal"):
            every = 1 - (1 - every) * (1 - self.c["shift_terminal"]) / (1 - every[-1])
        data = self.kind.startswith("FlowMatch") or self._ends_in_data()
        return _times(torch.cat([every, torch.zeros(1, dtype=torch.float64)]) if data else every)

    def _indices(self) -> Tensor:
        """The train steps visited, falling; fractions where the class keeps them."""
        c, n = self.c, self.n
        spacing, offset = c.get("timestep_spacing", "linspace"), c.get("steps_offset", 0)
        spare = self.kind.startswith(("DPMSolver", "UniPC", "DEIS", "SASolver"))
        clock = self.clock - self._clipped()
        if n + spare > clock:
            raise EbbError(f"{self.kind}: its clock has {clock} steps and cannot give {n}; ask for fewer.")
        if spacing == "linspace":
            index = torch.linspace(clock - 1, 0, n + spare, dtype=torch.float64)[:n]
            whole = spare or self.kind.startswith(("DDIM", "DDPM", "PNDM"))
            return index.round() if whole else index
        if spacing == "leading":
            index = torch.arange(n + spare, dtype=torch.float64).flip(0)[:n] * (clock // (n + spare)) + offset
            if float(index[0]) > self.clock - 1:
                raise self._no("steps_offset", f"it leaves the clock of {self.clock}")
            return index
        if spacing == "trailing":
            return (clock - torch.arange(n, dtype=torch.float64) * self.clock / n).round() - 1
        raise self._no("timestep_spacing", "known are linspace, leading and trailing")

    def _clipped(self) -> int:
        """Train steps at the noisy end that are left out."""
        limit = self.c.get("lambda_min_clipped", -math.inf)
        limit = -math.inf if limit is None else float(limit)
        return int((-self.table().log() < limit).sum()) if math.isfinite(limit) else 0

    def _table_grid(self) -> dict[str, Any]:
        c, sigma, index = self.c, self.table(), self._indices()
        if self.kind == "DPMSolverSinglestepScheduler":
            index = self._nodes(index)
        chosen = [
            k for k in ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas") if c.get(k)
        ]
        if len(chosen) > 1:
            raise EbbError(f"{self.kind}: {' and '.join(chosen)} cannot both be; choose one.")
        data = self._ends_in_data()
        if chosen:
            return self._levels(chosen[0], sigma, index, data)
        if c.get("interpolation_type") == "log_linear":
            every = torch.linspace(float(sigma[-1].log()), float(sigma[0].log()), self.n + 1, dtype=torch.float64).exp()
            return _sigmas(every)
        if c.get("interpolation_type", "linear") != "linear":
            raise self._no("interpolation_type", "known are linear and log_linear")
        if bool((index == index.round()).all()):
            times = (index + 1) / self.clock
            return _times(torch.cat([times, torch.tensor([0.0 if data else 1 / self.clock], dtype=torch.float64)]))
        low = index.floor().long().clamp(max=self.clock - 2)
        between = sigma[low] + (index - low) * (sigma[low + 1] - sigma[low])
        return _sigmas(torch.cat([between, torch.zeros(1, dtype=torch.float64) if data else sigma[:1]]))

    def _ends_in_data(self) -> bool:
        c = self.c
        if self.kind in ("DEISMultistepScheduler", "SASolverScheduler"):
            return False
        if "final_sigmas_type" in c:
            if c["final_sigmas_type"] not in ("zero", "sigma_min"):
                raise self._no("final_sigmas_type", "known are zero and sigma_min")
            return bool(c["final_sigmas_type"] == "zero")
        return bool(c.get("set_alpha_to_one", True))

    def _levels(self, chosen: str, sigma: Tensor, index: Tensor, data: bool) -> dict[str, Any]:
        """A list of levels between two of the table: all of it, or what the spacing visits."""
        whole = self.kind.startswith(("DPMSolver", "UniPC", "DEIS", "SASolver"))
        if whole:
            high, low = float(sigma[-1]), float(sigma[0])
        else:
            k = index.floor().long().clamp(max=self.clock - 2)
            visited = sigma[k] + (index - k) * (sigma[k + 1] - sigma[k])
            high, low = float(visited[0]), float(visited[-1])
        high, low = (self.c.get(f) or v for f, v in (("sigma_max", high), ("sigma_min", low)))
        n = self.n
        every = list_of_levels(chosen, n, low, high)
        if self.kind == "DPMSolverSinglestepScheduler":
            every = self._nodes(every)
        # DEIS and SA end at the last level again, a step of length zero; the others at the table's first
        last = torch.zeros(1, dtype=torch.float64) if data else sigma[:1]
        if not data and (self.kind in ("DEISMultistepScheduler", "SASolverScheduler") or self.kind.startswith("UniPC")):
            last = every[:0]
        return _sigmas(torch.cat([every, last]))

    def _nodes(self, every: Tensor) -> Tensor:
        """Where whole steps of a singlestep method begin; what lies between is the solver's own."""
        orders = self._orders()
        if max(orders) > 1:
            self.notes.append("the stages of a step lie evenly in log-SNR, not at the train steps of the config.")
        return every[[sum(orders[:k]) for k in range(len(orders))]]

    def _orders(self) -> list[int]:
        """The orders of the steps of a singlestep method that makes n calls, as the class deals them out."""
        order, n, data = int(self.c["solver_order"]), self.n, self._ends_in_data()
        if order not in (2, 3):
            return [1] * n
        if n % order == 0 and not data and not self.c["lower_order_final"]:
            return [order] * (n // order)
        tail = list(fast(n)[1]) if order == 3 else [1] * (2 - n % 2)
        orders = [order] * ((n - sum(tail)) // order) + tail
        return [*orders[:-1], *[1] * orders[-1]] if data else orders

    def _consistent_grid(self) -> dict[str, Any]:
        origin = int(self.c["original_inference_steps"])
        if origin > self.clock or self.n > origin:
            raise self._no("original_inference_steps", f"it must lie between the steps ({self.n}) and {self.clock}")
        trained = torch.arange(1, origin + 1, dtype=torch.float64).flip(0) * (self.clock // origin) - 1
        chosen = trained[(torch.arange(self.n, dtype=torch.float64) * origin / self.n).floor().long()]
        self.notes.append("the boundary scaling of the network (timestep_scaling) is left out: 1 to within 4e-6.")
        return _times(torch.cat([(chosen + 1) / self.clock, torch.zeros(1, dtype=torch.float64)]))

    def _edm_grid(self) -> dict[str, Any]:
        c = self.c
        if c["sigma_schedule"] not in ("karras", "exponential"):
            raise self._no("sigma_schedule", "known are karras and exponential")
        made = {"name": c["sigma_schedule"], "steps": self.n, "sigma_min": c["sigma_min"], "sigma_max": c["sigma_max"]}
        if self._ends_in_data():
            return {**made, "rho": c["rho"]} if c["sigma_schedule"] == "karras" else made
        every = list_of_levels(f"use_{c['sigma_schedule']}_sigmas", self.n, c["sigma_min"], c["sigma_max"], c["rho"])
        return _sigmas(every)

    def _strength(self) -> float | None:
        """The shift, or None where the size of the state gives it."""
        c = self.c
        if not c.get("use_dynamic_shifting"):
            return float(c["flow_shift" if "flow_shift" in c else "shift"])
        if c["time_shift_type"] not in ("exponential", "linear"):
            raise self._no("time_shift_type", "known are exponential and linear")
        if self.mu is None:
            if "base_shift" in c:
                return None
            raise self._no("use_dynamic_shifting", "give mu, as the pipeline does, or a fixed flow_shift")
        return math.exp(self.mu) if c["time_shift_type"] == "exponential" else self.mu

    def _flow_grid(self) -> dict[str, Any]:
        c, shift = self.c, self._strength()
        first = 1 / self.clock
        # without a dynamic shift the smallest level is shifted once at birth, and again with the others
        last = first if c.get("use_dynamic_shifting") else c["shift"] * first / (1 + (c["shift"] - 1) * first)
        chosen = [k for k in LEVELS if c.get(k)]
        made: dict[str, Any] = {"name": "shift", "steps": self.n, "last": last}
        if c.get("shift_terminal"):
            made["terminal"] = c["shift_terminal"]
        if shift is None:
            if chosen:
                raise self._no(chosen[0], "levels of a dynamic shift depend on the size of the state; give mu")
            sizes = {"base_length": c["base_image_seq_len"], "max_length": c["max_image_seq_len"]}
            shifts = {"base_shift": c["base_shift"], "max_shift": c["max_shift"], "form": c["time_shift_type"]}
            return {**made, "dynamic": True, **sizes, **shifts}
        if self.n == 1:  # one level, the noisiest
            return {"name": "explicit", "times": [1.0, 0.0]}
        if not chosen:
            return {**made, "shift": shift}
        ends = [shift * t / (1 + (shift - 1) * t) for t in (1.0, last)]
        low = c["shift_terminal"] or ends[1]
        every = list_of_levels(chosen[0], self.n, low, ends[0])
        return _times(torch.cat([every, torch.zeros(1, dtype=torch.float64)]))

    def _shifted_grid(self) -> dict[str, Any]:
        """Flow levels of a class made for tables."""
        c, shift, end = self.c, self._strength(), 1 - 1 / self.clock
        assert shift is not None
        chosen = [k for k in LEVELS if c.get(k)]
        if chosen:
            raise self._no(chosen[0], "it does not go together with use_flow_sigmas here")
        even = torch.linspace(end, 0, self.n + 1, dtype=torch.float64)[:-1]
        if self.kind.startswith("UniPC"):
            even = torch.linspace(1, 1 / self.clock, self.n + 1, dtype=torch.float64)[:-1]
        every = shift * even / (1 + (shift - 1) * even)
        if c.get("shift_terminal") and self.n > 1:
            every = 1 - (1 - every) * (1 - c["shift_terminal"]) / (1 - every[-1])
        if self.kind.startswith("UniPC"):
            every = every.clamp(max=1 - 1e-6)  # as the class has it, whose corrector weighs by log-SNR
        if self.kind == "DPMSolverSinglestepScheduler":
            every = self._nodes(every)
        data = self._ends_in_data()
        return _times(torch.cat([every, torch.zeros(1, dtype=torch.float64)]) if data else every)


# ---------------------------------------------------------------- lists


def list_of_levels(chosen: str, n: int, low: float, high: float, rho: float = 7.0) -> Tensor:
    """`n` levels falling from `high` to `low`, by the rule of a config's `use_..._sigmas`, float64."""
    ramp = torch.linspace(0, 1, n, dtype=torch.float64)
    if chosen == "use_karras_sigmas":
        first, last = high ** (1 / rho), low ** (1 / rho)
        return (first + ramp * (last - first)) ** rho
    if chosen == "use_beta_sigmas":
        quantiles = torch.tensor([beta_quantile(v, 0.6, 0.6) for v in (1 - ramp).tolist()], dtype=torch.float64)
        return low + quantiles * (high - low)
    return (math.log(high) + ramp * (math.log(low) - math.log(high))).exp()


def _falling(every: Tensor) -> list[float]:
    """The list without repetitions, which may differ in the last bits."""
    out: list[float] = []
    for v in every.tolist():
        if not out or v < out[-1] * (1 - 1e-12):
            out.append(v)
    return out


def _times(every: Tensor) -> dict[str, Any]:
    return _explicit("times", every)


def _sigmas(every: Tensor) -> dict[str, Any]:
    return _explicit("sigmas", every)


def _explicit(what: str, every: Tensor) -> dict[str, Any]:
    listed = _falling(every)
    if len(listed) < 2:
        raise EbbError("this config leaves no step to take at this number of steps; ask for more.")
    return {"name": "explicit", what: listed}
