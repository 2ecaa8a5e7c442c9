"""A folder that `save_pretrained` left, opened: only what lies in it, only safetensors, no code of its own unless said so."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from ebbtide.core.errors import EbbError, nearest
from ebbtide.interop.files import content
from ebbtide.interop.pipelines.folder import check_weights
from ebbtide.interop.transformers.checks import told

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "float64": torch.float64}
_OF_TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "tokenizer.model")
_REMOTE = ("AutoModelForMaskedLM", "AutoModel", "AutoModelForCausalLM")


def open_model(folder: Path, dtype: Any = None, trust_remote_code: bool = False) -> Any:
    """The language model in a folder, in evaluation mode; nothing is fetched.

    Raises EbbError for a class that is unknown, causal or has no head for tokens, code of the folder's own that nobody
    trusted, missing weights, pickles, and a dtype that does not exist.
    """
    kind = _dtype(dtype)
    config = content(folder / "config.json")
    import transformers
    from safetensors import SafetensorError

    maker, trusted = _maker(transformers, folder, config, trust_remote_code)
    check_weights(folder)
    try:
        with _silent(transformers.utils.logging):
            module, found = maker.from_pretrained(
                folder,
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=trusted,
                dtype=kind,
                output_loading_info=True,
            )
    except (OSError, ValueError, ImportError, RuntimeError, SafetensorError) as error:
        raise EbbError(f"{folder} cannot be opened as a language model: {str(error).splitlines()[0]}") from error
    if found["missing_keys"]:  # transformers would draw them
        some = ", ".join(sorted(found["missing_keys"])[:3])
        raise EbbError(f"{folder} misses weights of {type(module).__name__}, {some} among them: save the whole model.")
    return module.eval().requires_grad_(False)


def _dtype(dtype: Any) -> torch.dtype:
    if dtype is None:
        return torch.float32
    if isinstance(dtype, torch.dtype) and dtype.is_floating_point:
        return dtype
    if str(dtype) not in _DTYPES:
        raise EbbError(f"there is no dtype {dtype!r} of weights; {nearest(str(dtype), _DTYPES)}")
    return _DTYPES[str(dtype)]


def _maker(library: Any, folder: Path, config: dict[str, Any], trust: bool) -> tuple[Any, bool]:
    """What opens the folder, and whether code of the folder runs for it."""
    name = next(iter(config.get("architectures") or []), "")
    told(name, SimpleNamespace(**{k: v for k, v in config.items() if k in ("is_decoder", "is_encoder_decoder")}))
    masked = library.models.auto.modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    kind = masked.get(config.get("model_type"), name)
    if hasattr(library, kind):
        return getattr(library, kind), False
    own = config.get("auto_map") or {}
    if not own:
        what = f"class {name}" if name else f"model type {config.get('model_type')!r}"
        raise EbbError(f"{folder}: transformers {library.__version__} has no {what}; {nearest(kind, masked.values())}")
    if not trust:
        raise EbbError(
            f"{folder} brings code of its own for {name or config.get('model_type')}, which is not run; if you trust it, "
            "say so: ebb.load(..., trust_remote_code=True)."
        )
    auto = next((k for k in _REMOTE if k in own), None)
    if auto is None:
        raise EbbError(f"{folder}: its auto_map names no language model, {' or '.join(_REMOTE)}.")
    return getattr(library, auto), True


@contextlib.contextmanager
def _silent(logging: Any) -> Iterator[None]:
    """No bars on the terminal: it is ours."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def has_tokenizer(folder: Path) -> bool:
    """Whether a tokenizer was saved in the folder."""
    return any((folder / name).exists() for name in _OF_TOKENIZERS)


def open_tokenizer(folder: Path, trust_remote_code: bool = False) -> Any:
    """The tokenizer in a folder; nothing is fetched. Raises EbbError where there is none that can be read."""
    import transformers

    try:
        return transformers.AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=trust_remote_code
        )
    except Exception as error:  # the readers of its formats raise whatever they like
        raise EbbError(f"{folder} holds no tokenizer that can be read: {str(error).splitlines()[0]}") from error
