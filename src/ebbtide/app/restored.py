"""What is shown of restorations: the posterior that samples of one measurement are draws of, beside the samples themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from ebbtide.core import registry

if TYPE_CHECKING:
    from torch import Tensor

    from ebbtide.measure.posterior import Posterior
    from ebbtide.samples import Samples


class Restored(NamedTuple):
    """The report on samples, and one sheet of pictures: measurement, mean, standard deviation, samples."""

    report: Posterior
    pixels: Tensor

    @property
    def figures(self) -> dict[str, Any]:
        """The report in a few numbers."""
        r = self.report
        return {"residual": float(r.residual.mean()), "noise": r.noise, "std": float(r.std.mean())}


def restored(samples: Samples) -> Restored | None:
    """What samples restore, where their plan restores one measurement that it names; else None."""
    from ebbtide.measure import operators
    from ebbtide.measure.posterior import posterior, sheet
    from ebbtide.samples import finite_rows

    cond = (samples.plan.run or {}).get("cond")
    parts = [p for slot in registry.SLOTS for p in samples.plan.parts(slot) if operators.MEASURED in p.reads]
    if not parts or not isinstance(cond, dict) or not isinstance(cond.get(operators.MEASURED), dict):
        return None
    n = len(samples)
    own = {k: v for k, v in samples.model.condition(cond, n).items() if k in operators.READ}
    good = finite_rows(samples.x).nonzero()[:, 0]
    if not len(good):
        return None
    operator = operators.find(parts[0].operator, own).rows(good)
    x = samples.x[good].cpu()
    report = posterior(x, parts[0].operator, operator.cond)
    return Restored(report, sheet(report, operator.measured[0], samples.x.cpu()))
