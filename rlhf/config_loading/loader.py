"""Config files to frozen config objects and back: defaults < YAML file < `a.b=value` overrides.

Owns the order in which values win and what an override may do. Does not own: the dialect (`yaml`), the knowledge
of fields (`fields`), the wording of complaints (`errors`), any field or default (each package's
`config.py`).
"""

import difflib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_origin

from pydantic import BaseModel, ValidationError

from rlhf.config_loading.errors import explain
from rlhf.config_loading.fields import (
    FieldDescription,
    child,
    chosen_section,
    default_of,
    describe_fields,
    members,
    sections,
    tag_field,
)
from rlhf.config_loading.yaml import ConfigError, dump_yaml, inline, parse_mapping, parse_yaml

__all__ = ["ConfigError", "FieldDescription", "describe_fields", "dump_config", "load_config"]

Config = TypeVar("Config", bound=BaseModel)
_OVERRIDE = re.compile(r"(?P<name>\w[\w-]*(?:\.\w[\w-]*)*)=(?P<value>.*)", re.DOTALL)
_ENVIRONMENT_REFERENCE = re.compile(r"\$\{\w+\}")


class _Partial(dict[str, Any]):
    """Mapping that an override's dotted name stands for: it changes the keys it holds and leaves their neighbours."""


def load_config(cls: type[Config], path: Path | None, overrides: Sequence[str] = ()) -> Config:
    """Builds a config from its defaults, then a YAML file, then overrides; later ones win key by key.

    A section given in part keeps the rest of its default, also where the enclosing class chose a default of its own. A
    section that switches its variant (`tuning.kind=lora`) keeps the keys that the new variant has too and drops the
    others. Values are checked strictly: no text for a number, no true for 1.

    Args:
        cls: config class of the stage.
        path: YAML file; None starts from the defaults alone.
        overrides: `a.b=value` strings, the value in YAML; `a.0.b` reaches into a list; the last of equal names wins.

    Raises:
        ConfigError: with one line for each problem: the field, the value received, what is allowed, how to fix it.
    """
    data = _read_file(path) if path is not None else {}
    for override in overrides:
        data = _apply_override(cls, data, override)
    _refuse_environment_references(data)
    try:
        return cls.model_validate_json(json.dumps(_with_default_sections(cls, data)), strict=True)
    except ValidationError as error:
        raise ConfigError("\n".join(explain(cls, error))) from error


def dump_config(config: BaseModel) -> str:
    """Writes a config, defaults included, as YAML that `load_config` reads back to an equal config."""
    return dump_yaml(config.model_dump(mode="json"))


def _read_file(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such config file; {_nearby(path)}") from error
    except IsADirectoryError as error:
        raise ConfigError(f"{path}: is a folder; name one YAML file in it") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    return parse_mapping(text, source=str(path))


def _nearby(path: Path) -> str:
    candidates = sorted(str(file) for file in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
    close = difflib.get_close_matches(str(path), candidates, n=3, cutoff=0.6)
    return f"did you mean {' or '.join(close)}?" if close else "check the path; the examples are in configs/"


def _apply_override(cls: type[BaseModel], data: dict[str, Any], override: str) -> dict[str, Any]:
    try:
        return _overlay(cls, data, _parse_override(override))
    except IndexError as error:
        raise ConfigError(f"override {override!r}: {error}") from error


def _parse_override(override: str) -> _Partial:
    match = _OVERRIDE.fullmatch(override)
    if match is None:
        raise ConfigError(f"override {override!r}: allowed: a.b=value; write a dotted key, '=', and a YAML value")
    name, text = match["name"], match["value"]
    value: Any = parse_yaml(text, source=f"override {override!r}")
    if value is None and text.strip() not in ("null", "Null", "NULL", "~"):
        remedy = f"write {name}=null for none, or {name}=\"''\" for empty text"
        raise ConfigError(f"override {override!r}: no value after '='; {remedy}")
    *sections_above, leaf = name.split(".")
    tree = _Partial({leaf: value})
    for key in reversed(sections_above):
        tree = _Partial({key: tree})
    return tree


def _with_default_sections(annotation: object, data: Any) -> Any:
    """Lays each section that is given in part over the default that its enclosing class chose for it."""
    if isinstance(data, list):
        return [_with_default_sections(_inner(annotation, None, index), item) for index, item in enumerate(data)]
    section = chosen_section(annotation, data) if isinstance(data, dict) else None
    if section is None:
        return data
    completed = dict(data)
    for name, field in section.model_fields.items():
        default = default_of(field)
        if isinstance(default, BaseModel) and isinstance(data.get(name), dict):
            completed[name] = _overlay(field.annotation, _explicit(default, field.annotation), data[name])
        if name in completed:
            completed[name] = _with_default_sections(field.annotation, completed[name])
    return completed


def _explicit(section: BaseModel, annotation: object) -> dict[str, Any]:
    """What was given to this section when it was built, and the tag of its variant; its own defaults stay unsaid."""
    tag = tag_field(annotation)
    tree = {tag: getattr(section, tag)} if tag else {}
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            tree[name] = _explicit(value, field.annotation)
        elif name in section.model_fields_set:
            tree |= section.model_dump(mode="json", include={name})
    return tree


def _overlay(annotation: object, base: Any, top: Any) -> Any:
    """Lays `top` over `base`: sections and dotted overrides key by key, everything else as a whole."""
    if isinstance(top, _Partial) and (isinstance(base, list) or (base is None and _is_list(annotation))):
        return _overlay_list(annotation, base or [], top)
    if not isinstance(top, dict):
        return top
    if not isinstance(base, dict) or not (sections(annotation) or isinstance(top, _Partial)):
        base = {}
    section = chosen_section(annotation, {**base, **top})
    if _switches_variant(annotation, base, top):
        base = {key: value for key, value in base.items() if section and key in section.model_fields}
    merged = dict(base)
    for key, value in top.items():
        merged[key] = _overlay(_inner(annotation, section, key), merged.get(key), value)
    return merged


def _overlay_list(annotation: object, base: list[Any], top: _Partial) -> list[Any]:
    merged = list(base)
    for key, value in top.items():
        if not key.isdecimal() or int(key) >= len(base):
            allowed = f"0 to {len(base) - 1}" if base else "none"
            raise IndexError(
                f"{key!r} is no index of the list {inline(base)}; allowed: {allowed}; or give the whole list"
            )
        merged[int(key)] = _overlay(_inner(annotation, None, int(key)), base[int(key)], value)
    return merged


def _inner(annotation: object, section: type[BaseModel] | None, key: str | int) -> object:
    if section is not None:
        return child(section, key)
    return next((found for member in members(annotation) if (found := child(member, key)) is not None), None)


def _is_list(annotation: object) -> bool:
    return any(get_origin(member) in (tuple, list) for member in members(annotation))


def _switches_variant(annotation: object, base: dict[str, Any], top: dict[str, Any]) -> bool:
    tag = tag_field(annotation)
    return tag is not None and tag in top and top[tag] != base.get(tag)


def _refuse_environment_references(data: dict[str, Any]) -> None:
    found = [
        f"{name}: received {inline(value)}; environment variables are not expanded; write the value itself"
        for name, value in _leaves(data, "")
        if isinstance(value, str) and _ENVIRONMENT_REFERENCE.search(value)
    ]
    if found:
        raise ConfigError("\n".join(found))


def _leaves(data: Any, name: str) -> Iterator[tuple[str, Any]]:
    parts = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else None
    if parts is None:
        yield name, data
        return
    for key, value in parts:
        yield from _leaves(value, f"{name}.{key}" if name else str(key))
