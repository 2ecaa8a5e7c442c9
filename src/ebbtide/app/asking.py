"""What samples are asked to show: labels or prompts, what was typed over what a plan says."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ebbtide.app.options import Options
from ebbtide.core.errors import EbbError
from ebbtide.denoise import files

if TYPE_CHECKING:
    from ebbtide.denoise.model import Model


def numbers(text: str | None, option: str) -> int | list[int] | None:
    """A whole number, or several after commas. Raises EbbError for anything else."""
    if text is None:
        return None
    try:
        found = [int(v) for v in text.split(",")]
    except ValueError:
        raise EbbError(f"{option} takes a whole number, or several after commas, not {text!r}.") from None
    return found if len(found) > 1 else found[0]


def size_of(text: str | None) -> tuple[int, int] | None:
    """Height and width of HxW, or of one number for both. Raises EbbError for anything else."""
    if text is None:
        return None
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(p.isdecimal() and int(p) > 0 for p in parts):
        raise EbbError(f"--size is HxW in pixels, as in 512x768, or one number for a square, not {text!r}.")
    return int(parts[0]), int(parts[-1])


def prompts_of(o: Options) -> list[str] | None:
    """The prompts that were typed, those of files read; None where none was.

    Raises EbbError for a file that is missing or holds no prompt, and for words beside labels.
    """
    said = [f"--{name}" for name, value in (("prompt", o.prompt), ("negative", o.negative)) if value]
    if o.label is not None and said:
        raise EbbError(f"a model is asked either by labels or in words: leave out --label or {' and '.join(said)}.")
    if not o.prompt:
        return None
    return [prompt for text in o.prompt for prompt in (_lines(text[1:]) if text.startswith("@") else [text])]


def first_prompt(o: Options, run: dict[str, Any]) -> str:
    """One of the prompts to come; empty where there is none."""
    held = run.get("cond")
    found: Any = prompts_of(o) or (held.get("prompt") if isinstance(held, dict) else held)
    found = found[0] if isinstance(found, list) and found else found
    return found if isinstance(found, str) else ""


def _lines(file: str) -> list[str]:
    """The prompts of a file, one a line; empty lines do not count."""
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text in UTF-8"
        raise EbbError(f"--prompt @{file} cannot be read: {why}.") from None
    found = [line.strip() for line in lines if line.strip()]
    if not found:
        raise EbbError(f"--prompt @{file}: this file holds no prompt; write one a line.")
    return found


def cond_of(o: Options, run: dict[str, Any], n: int, model: Model, group: int = 1) -> tuple[Any, str]:
    """The condition of n samples, `group` to a request, and a word about it where it was nobody's choice.

    Raises EbbError for words to a model that knows labels, and labels to one that is asked in words.
    """
    held = run.get("cond")
    given = {k: v for k, v in held.items() if files.named(v)} if isinstance(held, dict) else {}
    given |= {k: _turns(v, n, group) for k, v in (o.given or {}).items()}
    cond, word = _asked(o, run, n, model, group)
    if not given:
        return cond, word
    return {**({"label": cond} if cond is not None and not isinstance(cond, dict) else cond or {}), **given}, word


def _asked(o: Options, run: dict[str, Any], n: int, model: Model, group: int) -> tuple[Any, str]:
    """What samples are asked to show, beside the files that they are given."""
    from ebbtide.api import TENSORS

    prompts = prompts_of(o)
    if not model.prompted and (prompts is not None or o.negative is not None):
        how = " (--label)" if model.labels else ""
        told = "--prompt" if prompts is not None else "--negative"
        raise EbbError(f"{model.name} is not asked in words{how}; leave {told} out.")
    if model.prompted and o.label is not None:
        raise EbbError(f"{model.name} is asked in words: give --prompt in place of --label.")
    held = run.get("cond")
    if held == TENSORS and prompts is None and o.label is None:
        raise EbbError("this plan's condition was made of tensors, which a plan does not hold: run it from Python.")
    if model.prompted:
        return _words(prompts, o.negative, None if held == TENSORS else held, n, model, group)
    if o.label == "none":
        return None, ""
    cond: Any = numbers(o.label, "--label")
    if cond is None and run:
        cond = held
    elif cond is None and model.labels and "data" not in model.info:
        word = f"labels 0 to {model.labels - 1} in turn (--label chooses, --label none: any)"
        return _turns(list(range(model.labels)), n, group), word
    return _turns(cond, n, group), ""


def _words(
    prompts: list[str] | None, negative: str | None, held: Any, n: int, model: Model, group: int
) -> tuple[Any, str]:
    """Prompts for n samples, over those that a plan holds."""
    cond = dict(held) if isinstance(held, dict) else {} if held is None else {"prompt": held}
    word = ""
    if prompts is not None:
        cond["prompt"] = prompts if len(prompts) > 1 else prompts[0]
    elif "prompt" not in cond:
        few = list(model.info.get("prompts", ()))
        cond["prompt"] = few or ""
        word = f"{', '.join(few)} in turn (--prompt chooses)" if few else "the empty prompt (--prompt chooses)"
    if negative is not None:
        cond["negative"] = negative
    return {k: _turns(v, n, group) for k, v in cond.items()}, word


def _turns(value: Any, n: int, group: int) -> Any:
    """A list as n values, taken in turn by requests of `group`; one of n values already has one for each."""
    if not isinstance(value, list) or len(value) in (0, n):
        return value
    return [value[k // group % len(value)] for k in range(n)]
