"""diffusers' pipelines as models, and ebbtide's loop in diffusers' pipelines; diffusers is imported when one is opened."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ebbtide.core.errors import EbbError

if TYPE_CHECKING:
    from ebbtide.core.plan import Plan
    from ebbtide.interop.pipelines.model import PipelineModel

__all__ = ["attach", "is_pipeline", "load"]


def is_pipeline(source: Any) -> bool:
    """Whether this is a pipeline object, or a folder that holds one."""
    if isinstance(source, str | Path):
        return (Path(source) / "model_index.json").is_file()
    library = sys.modules.get("diffusers")  # whoever made a pipeline imported it
    return library is not None and isinstance(source, library.DiffusionPipeline)


def load(source: Any, *, dtype: Any = None, device: Any = None, **options: Any) -> PipelineModel:
    """A pipeline, or the folder of one, as a model.

    dtype    of the networks of a folder; float32 by default
    device   where those of a folder go
    options  what `interop.pipelines.model.load` takes: prompt, name, and what the pipeline's call takes besides (height, ...)

    Raises EbbError for what cannot be opened or called.
    """
    from ebbtide.interop.pipelines import folder, model

    if isinstance(source, str | Path):
        options = {"name": str(source), **options}
        source = folder.open_pipeline(Path(source), dtype)
        if device is not None:
            source.to(device)
    elif dtype is not None or device is not None:
        raise EbbError("dtype and device are for folders; a pipeline is what it is: use pipe.to(dtype).")
    return model.load(source, **options)


def attach(plan: Plan | None, pipe: Any) -> Any:
    """A pipeline that keeps its call and samples by `plan`: see `interop.pipelines.attaching.attach`."""
    from ebbtide.interop.pipelines.attaching import attach as made

    return made(plan, pipe)
