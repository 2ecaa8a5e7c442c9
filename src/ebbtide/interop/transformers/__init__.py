"""transformers' language models as denoisers of tokens; transformers is imported when one is opened."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ebbtide.core.errors import EbbError, nearest
from ebbtide.interop.files import glance

if TYPE_CHECKING:
    from ebbtide.denoise.model import Model

__all__ = ["is_language", "load"]


def is_language(source: Any, options: Mapping[str, Any]) -> bool:
    """Whether this is a language model: a folder or module of transformers, or a callable for which a mask is named.

    One that comes with its process, or with what it predicts, is any network's business.
    """
    if isinstance(source, str | os.PathLike):
        return _is_folder(Path(source))
    if options.get("process") is not None or "predicts" in options or not callable(source):
        return False
    library = sys.modules.get("transformers")  # whoever made a model of its imported it
    known = library is not None and isinstance(source, library.PreTrainedModel)
    return known or bool(options.keys() & {"mask", "tokenizer"})


def _is_folder(folder: Path) -> bool:
    told = glance(folder / "config.json").keys() & {"model_type", "architectures", "auto_map"}
    return bool(told) and not (folder / "recipe.json").exists()


def load(
    source: Any,
    *,
    tokenizer: Any = None,
    dtype: Any = None,
    device: Any = None,
    trust_remote_code: bool = False,
    **options: Any,
) -> Model:
    """A language model that sees both ways, or the folder of one that `save_pretrained` left, as a model.

    tokenizer          an object or a folder; by default the one in the folder, where there is one
    dtype, device      of the weights of a folder; float32 on the CPU by default
    trust_remote_code  whether code that a folder brings may run; never otherwise
    options            what `interop.transformers.model.build` takes: mask, length, shift, units, schedule, attention, ...

    Raises EbbError for what cannot be opened, called, or be a denoiser.
    """
    from ebbtide.interop.transformers import folder, model

    known = [k for k, v in inspect.signature(model.build).parameters.items() if v.kind is v.KEYWORD_ONLY]
    for k in options:
        if k not in known:
            raise EbbError(f"a language model is not loaded with {k!r}; {nearest(k, known)}")
    if isinstance(source, str | os.PathLike):
        options = {"name": str(source), **options}
        path, source = Path(source), folder.open_model(Path(source), dtype, trust_remote_code).to(device)
        tokenizer = path if tokenizer is None and folder.has_tokenizer(path) else tokenizer
    elif dtype is not None or device is not None:
        raise EbbError("dtype and device are for folders; a module is what it is: use module.to(dtype).")
    if isinstance(tokenizer, str | os.PathLike):
        tokenizer = folder.open_tokenizer(Path(tokenizer), trust_remote_code)
    return model.build(source, tokenizer, **options)
