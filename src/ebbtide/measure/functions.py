"""Functions that a plan names: those of the package by a name, a user's own as "file.py:function".

    "mean"   {"name": "near", "point": [1.0, 0.0]}   "judge.py:sharpness"   {"name": "lens.py:warp", "strength": 2}

Rewards and operators are kinds of such functions. The first argument is the samples; what else a function wants of a run it
asks for by the names of its arguments (`asked`); all others are parameters, which a plan gives beside the name. A file is run
when a run begins, never when a plan is read.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from ebbtide.core.errors import EbbError, nearest

Spec = str | Mapping[str, Any]
_F = TypeVar("_F", bound=Callable[..., Any])


class Functions:
    """The functions of one kind.

    kind    what messages call one of them
    asked   names of arguments that a run fills in
    """

    def __init__(self, kind: str, asked: tuple[str, ...] = ()) -> None:
        self.kind, self.asked = kind, asked
        self.one = f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"
        self.known: dict[str, Callable[..., Any]] = {}

    def register(self, name: str) -> Callable[[_F], _F]:
        """Register a function under a name."""

        def keep(f: _F) -> _F:
            self.known[name] = f
            return f

        return keep

    def names(self) -> list[str]:
        """The names of all that need no file."""
        return sorted(self.known)

    def check(self, spec: Spec) -> None:
        """See that a function can be meant by this, without running any file. Raises EbbError for what cannot."""
        name, given = told(spec)
        if name is None:
            raise EbbError(f"{self.one} is a name, 'file.py:function', or a mapping with a 'name'.")
        if ".py" not in name:
            self._fits(self._named(name), name, given)

    def find(self, spec: Spec) -> Callable[..., Any]:
        """The function that is meant, its parameters given.

        Raises EbbError for unknown names and parameters, for a file that is missing or fails, and for a function it lacks.
        """
        self.check(spec)
        name, given = told(spec)
        assert name is not None
        f = self._filed(name) if ".py" in name else self._named(name)
        self._fits(f, name, given)
        return functools.partial(f, **given)

    def _named(self, name: str) -> Callable[..., Any]:
        if name not in self.known:
            raise EbbError(
                f"there is no {self.kind} {name!r}; {nearest(name, self.known)} Your own is 'file.py:function'."
            )
        return self.known[name]

    def _fits(self, f: Callable[..., Any], name: str, given: Mapping[str, Any]) -> None:
        places = inspect.signature(f).parameters
        known = [k for k in list(places)[1:] if k not in self.asked]
        for key in given:
            if key not in known:
                raise EbbError(f"the {self.kind} {name!r} has no parameter {key!r}; {nearest(key, known)}")
        for key in known:
            place = places[key]
            if key not in given and place.default is place.empty and place.kind not in (place.VAR_KEYWORD,):
                raise EbbError(
                    f"the {self.kind} {name!r} needs the parameter {key!r}: write {{name: {name}, {key}: ...}}."
                )

    def _filed(self, name: str) -> Callable[..., Any]:
        path, _, function = name.rpartition(":")
        if not path or not function.isidentifier():
            raise EbbError(f"the {self.kind} {name!r} names no function: write 'file.py:function'.")
        if not Path(path).is_file():
            raise EbbError(f"the {self.kind} {name!r}: there is no file {path}.")
        module = _module(str(Path(path).resolve()), Path(path).stat().st_mtime_ns)
        f = getattr(module, function, None)
        if not callable(f):
            known = [k for k, v in vars(module).items() if inspect.isfunction(v)]
            raise EbbError(f"{path} has no function {function!r}; {nearest(function, known)}")
        found: Callable[..., Any] = f
        return found


def told(spec: Spec) -> tuple[str | None, dict[str, Any]]:
    """The name in a spec (None: there is none) and the parameters beside it."""
    if isinstance(spec, str):
        return spec, {}
    name = spec.get("name")
    return name if isinstance(name, str) else None, {k: v for k, v in spec.items() if k != "name"}


def line(error: Exception) -> str:
    """What an exception says, on one line."""
    said = str(error).strip().split("\n")[0].rstrip(".")
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


@functools.lru_cache(16)
def _module(path: str, stamp: int) -> Any:
    module = types.ModuleType(f"ebbtide_file_{Path(path).stem}")
    module.__file__ = path
    try:  # not by an import, which would leave its bytecode in the user's folder
        exec(compile(Path(path).read_bytes(), path, "exec"), vars(module))
    except Exception as error:
        raise EbbError(f"{path} cannot be run: {line(error)}.") from error
    return module
