"""config.yaml of a run folder: how it is written, read, and compared with the configuration of a run that goes on.

Owns what may differ. A key that is newer than the saved file is compared at its default: a run of an earlier version
goes on as long as nobody asks for something else than it did.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

from pydantic import BaseModel, ValidationError

from rlhf.config_loading.yaml import dump_yaml, parse_mapping
from rlhf.runtime import json_lines

# Keys whose change cannot change a number: where the run lies, and who is told about it.
CHANGEABLE_ON_RESUME = frozenset({"run_dir", "tracking"})
_SHOWN_DIFFERENCES = 5
_MISSING = "(absent)"

Tree = dict[str, object]


def write_config(path: Path, resolved_config: Mapping[str, object]) -> None:
    """Replaces the file in one piece."""
    json_lines.write_atomically(path, dump_yaml(dict(resolved_config)))


def read_config(path: Path) -> Tree:
    """The resolved configuration that a run was started with."""
    return cast(Tree, parse_mapping(path.read_text(encoding="utf-8"), source=str(path)))


def refuse_changed_config(
    path: Path, resolved_config: Mapping[str, object], schema: type[BaseModel] | None = None
) -> None:
    """Refuses to take a run for one of another configuration; keys that change no number may differ.

    Args:
        path: The run's config.yaml.
        resolved_config: The whole configuration that is given now.
        schema: Class of the configuration; keys that the file does not have stand at its defaults.

    Raises:
        ValueError: naming the first keys that differ.
    """
    saved, given = leaves(_completed(read_config(path), schema)), leaves(_as_read_back(resolved_config))
    keys = sorted(key for key in saved.keys() | given.keys() if key.split(".")[0] not in CHANGEABLE_ON_RESUME)
    changed = [key for key in keys if saved.get(key, _MISSING) != given.get(key, _MISSING)]
    if changed:
        shown = [
            f"{key} (was {saved.get(key, _MISSING)!r}, now {given.get(key, _MISSING)!r})"
            for key in changed[:_SHOWN_DIFFERENCES]
        ]
        rest = f" and {len(changed) - len(shown)} more" if len(changed) > len(shown) else ""
        raise ValueError(
            f"--resume: the configuration differs from {path} in {', '.join(shown)}{rest}; "
            "give the old values, or name a new run_dir to start afresh"
        )


def let_grow(path: Path, resolved_config: Mapping[str, object], keys: Sequence[str]) -> None:
    """Takes the given values of these keys into the configuration of a run that is about to be resumed.

    For lists of runs that are kept and checked one by one; what else differs is refused as in any resumed run.
    """
    if path.exists():
        write_config(path, read_config(path) | {key: resolved_config[key] for key in keys})


def _completed(saved: Tree, schema: type[BaseModel] | None) -> Tree:
    """The saved configuration with the defaults of newer keys; as it is where the schema no longer takes it."""
    if schema is None:
        return saved
    try:
        return _as_read_back(schema.model_validate(saved).model_dump(mode="json"))
    except ValidationError:
        # The comparison key by key then says what has become of it.
        return saved


def _as_read_back(config: Mapping[str, object]) -> Tree:
    """A configuration as its file would give it back: tuples as lists, for one."""
    return cast(Tree, parse_mapping(dump_yaml(dict(config)), source="this configuration"))


def leaves(tree: object, prefix: str = "") -> Tree:
    """`{"a": {"b": 1}}` as `{"a.b": 1}`; a list counts as one leaf, an empty mapping too."""
    if not isinstance(tree, dict) or not tree:
        return {prefix: tree}
    branches = cast(Tree, tree)
    return {
        leaf: value
        for key, branch in branches.items()
        for leaf, value in leaves(branch, f"{prefix}.{key}" if prefix else str(key)).items()
    }
