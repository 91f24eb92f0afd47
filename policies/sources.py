"""What a model path holds: a full model, or a PEFT adapter and the base model that it belongs to.

Owns the question of where files come from; it reads no weights.
"""

import contextlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub.errors import HFValidationError
from transformers.utils.peft_utils import find_adapter_config_file

_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Where the parts of a model come from.

    Attributes:
        path: what the user named.
        base: folder or hub name of the full model.
        adapter: folder or hub name of the adapter; None for a full model.
    """

    path: str
    base: str
    adapter: str | None


def resolve_source(path: str) -> ModelSource:
    """Tells a full model from an adapter, and finds the adapter's base.

    Raises:
        ValueError: if the path is neither a folder with a model nor a hub name, or an adapter's base cannot be found.
    """
    require_model(path, field="model.path")
    config_file = _adapter_config_file(path)
    if config_file is None:
        return ModelSource(path=path, base=path, adapter=None)
    base = json.loads(Path(config_file).read_text(encoding="utf-8")).get("base_model_name_or_path")
    if not base:
        raise ValueError(
            f"model.path={path!r}: adapter_config.json names no base_model_name_or_path; write the base's path there"
        )
    require_model(base, field=f"base_model_name_or_path (in {config_file})")
    return ModelSource(path=path, base=base, adapter=path)


def require_model(path: str, *, field: str) -> None:
    """Refuses a path that can be neither a model folder nor a hub name.

    Raises:
        ValueError: naming the field, the path and what is missing.
    """
    folder = Path(path)
    if folder.is_dir():
        if not any((folder / name).is_file() for name in ("config.json", "adapter_config.json")):
            raise ValueError(
                f"{field}={path!r}: the folder has neither config.json nor adapter_config.json; name a model folder"
            )
    elif folder.exists():
        raise ValueError(f"{field}={path!r} is a file; name the folder that holds the model")
    elif not _HUB_NAME.fullmatch(path) or _holds_runs(folder.parent):
        raise ValueError(f"{field}={path!r}: no such folder; check the path, or run the stage that writes it first")


def _holds_runs(folder: Path) -> bool:
    """Whether models lie further below a folder than `owner/name` would have them: `runs/x` is then no hub name.

    Without this, a mistyped path costs a machine without network a minute of tries.
    """
    return folder != Path() and any(any(folder.glob(f"{depth}*config.json")) for depth in ("*/*/", "*/*/*/"))


def unreachable(path: str, error: Exception) -> ValueError:
    """The one-line error for a folder that does not load, or a name that the hub does not serve."""
    reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
    if Path(path).is_dir():
        return ValueError(f"model.path={path!r} cannot be loaded: {reason}")
    return ValueError(f"model.path={path!r} is no folder, and the hub does not serve it ({reason}); check the path")


@contextlib.contextmanager
def naming_models(field: str) -> Iterator[None]:
    """Inside, what is refused about a model names this field, for stages with models beside `model.path`."""
    try:
        yield
    except ValueError as error:
        raise ValueError(str(error).replace("model.path", field)) from error


def _adapter_config_file(path: str) -> str | None:
    try:
        return find_adapter_config_file(path)
    except (OSError, HFValidationError) as error:
        raise unreachable(path, error) from error
