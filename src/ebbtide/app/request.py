"""From what was typed to what is run: options over a plan file over defaults, and a model to go with them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ebbtide.app import parts
from ebbtide.app.asking import cond_of, first_prompt, numbers, prompts_of, size_of
from ebbtide.app.options import Options
from ebbtide.app.reading import STEPS, Read, read_plan
from ebbtide.core import registry
from ebbtide.core.errors import EbbError, nearest
from ebbtide.core.plan import Plan, filled

if TYPE_CHECKING:
    import torch

    from ebbtide.core.parts import Process
    from ebbtide.denoise.model import Model

DTYPES = ("float32", "float64", "float16", "bfloat16")


@dataclass(frozen=True)
class Request:
    """Everything that `ebb.sample` is asked, and what should be said about it."""

    model: Model
    plan: Plan
    cond: Any
    n: int
    seed: int | list[int]
    batch: int | None
    device: torch.device | None
    dtype: torch.dtype | None
    notes: list[str] = field(default_factory=list)
    group: int = 1

    @property
    def asked(self) -> dict[str, Any]:
        """The arguments of `ebb.sample`."""
        names = ("model", "plan", "cond", "n", "seed", "batch", "device", "dtype", "group")
        return {k: getattr(self, k) for k in names}

    @property
    def recorded(self) -> Plan:
        """The plan as it is written beside the samples."""
        from ebbtide import api

        return api.record(self.model, self.plan, self.cond, self.n, self.seed, self.batch, self.dtype, self.group)


# -------------------------------------------------------------------- the plan


def plan_of(o: Options, base: Read, process: Process | None = None) -> Read:
    """The plan with the options laid over it, and what should be said about them.

    process  of the model: a grid by another library's name is laid for it

    Raises EbbError for parts, parameters and values that do not exist.
    """
    data = base.plan.to_dict()
    if o.process is not None:
        data["process"] = {"name": o.process}
    notes, laid, grid = list(base.notes), base.laid, o.grid
    steps, within = data["grid"].get("steps", STEPS) if o.steps is None else o.steps, data.get("process", process)
    if o.solver is not None:
        found = parts.solver(o.solver, steps, within)
        _put(data, "solve", found.spec)
        notes.append(found.note)
        if isinstance(found.grid, str):
            grid = grid or found.grid
        elif found.grid is not None:
            if grid is not None:
                raise EbbError(f"the sampler {o.solver} has levels of its own; leave --grid {grid} out.")
            data["grid"], laid = found.grid, True
    if grid is not None:
        found = parts.grid(grid, steps, within)
        if "steps" in data["grid"] and "steps" in _parameters("grid", found.spec["name"]):
            found.spec.setdefault("steps", steps)
        _put(data, "grid", found.spec)
        notes.append(found.note)
        laid = found.foreign
    if o.steps is not None and not laid:
        data["grid"] = {**data["grid"], "steps": o.steps}
    if o.eta is not None:
        data["solve"] = {**data["solve"], "eta": o.eta}
    if o.guidance is not None:
        guides = list(data.get("guide", []))
        mine = [k for k, g in enumerate(guides) if g["name"] == "cfg"]
        for k in mine:
            guides[k] = {**guides[k], "scale": o.guidance}
        data["guide"] = guides if mine else [*guides, {"name": "cfg", "scale": o.guidance}]
    for text in o.sets or ():
        _set(data, text)
    return Read(Plan.from_dict(data), tuple(filter(None, notes)), laid)


def _put(data: dict[str, Any], slot: str, spec: dict[str, Any]) -> None:
    """Put a part in a slot; the one that is there, named alone, keeps its parameters."""
    if data[slot]["name"] != spec["name"] or spec.keys() - {"name", "steps"}:
        data[slot] = spec


def _parameters(slot: str, name: str) -> list[str]:
    return list(getattr(registry.find(slot, name).cls, "__pydantic_fields__", {}))


def _set(data: dict[str, Any], text: str) -> None:
    """slot=SPEC, slot.param=VALUE, or slot.PART.param=VALUE where the slot holds several parts; values are YAML."""
    import yaml

    where, sign, value = text.partition("=")
    slot, *path = where.strip().split(".")
    if not sign or slot not in registry.SLOTS or len(path) > 2:
        raise EbbError(
            f"--set {text}: write slot.param=value or slot=part, with a slot of {', '.join(registry.SLOTS)}."
        )
    try:
        plain = yaml.safe_load(value)
    except yaml.YAMLError:
        raise EbbError(f"--set {text}: {value} cannot be read as a value (YAML).") from None
    if not path:
        data[slot] = filled(slot, plain)
        return
    held = data.get(slot) or []
    specs: list[dict[str, Any]] = held if isinstance(held, list) else [held]
    mine = [s for s in specs if len(path) == 1 or s["name"] == path[0]]
    if len(mine) != 1:
        raise EbbError(
            f"--set {text}: {slot} holds {', '.join(s['name'] for s in specs) or 'no part'}; "
            f"write {slot}.PART.param=value for one of them, or {slot}=PART first."
        )
    mine[0][path[-1]] = plain


# -------------------------------------------------------------------- the rest


def device_of(name: str | None) -> torch.device | None:
    """The device of that name. Raises EbbError for one that this machine does not have."""
    import torch

    if name is None:
        return None
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise EbbError(f"there is no device {name!r} here; cpu is always there.") from None
    return device


def dtype_of(name: str | None) -> torch.dtype | None:
    """The dtype of that name. Raises EbbError for names that are none of `DTYPES`."""
    import torch

    if name is None:
        return None
    if name not in DTYPES:
        raise EbbError(f"there is no dtype {name!r} to sample in; {nearest(name, DTYPES)}")
    found: torch.dtype = getattr(torch, name)
    return found


def model_of(
    o: Options, run: dict[str, Any], device: torch.device | None = None, dtype: torch.dtype | None = None
) -> Model:
    """The model that was named, or that the plan names, a network on `device`; the networks of a pipeline in `dtype`.

    Raises EbbError where neither names one, and for options that the model does not have.
    """
    from ebbtide import api, zoo
    from ebbtide.interop import pipelines

    if o.data is not None and o.model is not None:
        raise EbbError(f"two models are named, {o.model} and --data {o.data}: leave one out.")
    named = o.data or o.model or run.get("data") or run.get("model")
    if named is None:
        raise EbbError("name a model, as in `ebb sample digits`, or give --data, or a --plan that says what was run.")
    size = size_of(o.size)
    pictures = named in (o.data, run.get("data"))  # a path then, even where a model has the same name
    if pictures and not Path(named).exists():
        raise EbbError(f"there is no {named}: --data takes a folder of pictures or an .npz file.")
    held = run if named in (run.get("data"), run.get("model")) else {}
    if not pictures and pipelines.is_pipeline(named):
        if o.denoiser is not None:
            raise EbbError(f"{named} is a pipeline: --denoiser is for --data.")
        _hush()
        asked = dict(held.get("size", {})) | ({} if size is None else {"height": size[0], "width": size[1]})
        return pipelines.load(named, dtype=dtype, device=device, prompt=first_prompt(o, run), **asked)
    said: dict[str, Any] = {"denoiser": o.denoiser or held.get("denoiser"), "size": held.get("size")}
    if size is not None:
        if size[0] != size[1]:
            raise EbbError(f"--size {o.size}: pictures of --data are made square; give one number.")
        said["size"] = size[0]
    said = {k: v for k, v in said.items() if v is not None}
    if said and not pictures and named in zoo.names():
        others = "pipelines and --data" if "size" in said else "--data"
        raise EbbError(f"{named} is a network: --{next(iter(said))} is for {others}.")
    network = not pictures and (named in zoo.names() or (Path(named) / "recipe.json").exists())
    if network and device is not None:
        said["device"] = device  # closed forms follow the state by themselves
    return api.load(Path(named) if pictures else named, **said)


def _hush() -> None:
    """Keep the bars and remarks of libraries off the terminal; what matters of them is told in notes."""
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
        library.utils.logging.set_verbosity_error()


def resolve(o: Options, base: Plan | None = None) -> Request:
    """Read the plan, lay the options over it, load the model. Raises EbbError for everything that cannot be."""
    read = Read(base or Plan()) if o.plan is None else read_plan(o.plan, o.steps)
    run = dict(read.plan.run or {})
    read = read._replace(plan=read.plan.replace(run=None))
    plan = plan_of(o, read)
    seed = numbers(o.seed, "--seed")
    if seed is None:
        seed = run.get("seed", 0)
    prompts = prompts_of(o)
    group = run.get("group", 1) if o.group is None else o.group
    if group < 1:
        raise EbbError(f"--group is at least one sample to a request, not {group}.")
    usual = group * len(prompts) if prompts else 16
    n = o.n if o.n is not None else run.get("n", len(seed) if isinstance(seed, list) else usual)
    if isinstance(seed, list) and o.n is not None and o.seed is None:
        seed = seed[:n]
    if n < 1:
        raise EbbError(f"-n is the number of samples, at least 1, not {n}.")
    batch = run.get("batch") if o.batch is None else o.batch
    if batch is not None and batch < 1:
        raise EbbError(f"--batch is at least one sample at a time, not {batch}.")
    device, dtype = device_of(o.device), dtype_of(o.dtype or run.get("dtype"))
    model = model_of(o, run, device, dtype)
    if plan.laid and plan.plan.process is None:
        plan = plan_of(o, read, model.process)
    notes = list(plan.notes)
    if run.get("digest", model.digest) != model.digest and run.get("model") == model.name:
        notes.append(f"{model.name} is not what the plan was run with: its weights differ, so will the samples")
    cond, word = cond_of(o, run, n, model, group)
    return Request(model, plan.plan, cond, n, seed, batch, device, dtype, [*notes, word] if word else notes, group)
