"""What a config class holds: fields with type, default and description, and the way from a section to its parts.

Owns every question about annotations (optional sections, tagged unions, lists of sections), so that merging, error
messages and help agree on the answers. Reads no file and checks no value.
"""

import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from rlhf.config_loading.yaml import inline

_SCALAR_NAMES = {int: "integer", float: "number", bool: "true | false", str: "text", Path: "path", type(None): "null"}
_BOUNDS = (("gt", "> "), ("ge", ">= "), ("lt", "< "), ("le", "<= "), ("multiple_of", "a multiple of "))


@dataclass(frozen=True)
class FieldDescription:
    """One leaf of a config, for help and documentation."""

    name: str
    """Dotted name, as in an override."""
    type: str
    """What it accepts, in words: `integer >= 1`, `sdpa | eager`, `list of text`."""
    default: str
    """Default as YAML, or `required`."""
    description: str
    """The line under the field, with its unit."""
    variant: str = ""
    """Empty, or the choices under which the field exists: `model.tuning.kind=lora`."""


def describe_fields(cls: type[BaseModel]) -> list[FieldDescription]:
    """Lists every field of a config class depth-first, sections opened, each variant of a tagged union in turn."""
    return list(_describe(cls, prefix="", variant="", defaults=None))


def members(annotation: object) -> tuple[Any, ...]:
    """Alternatives of an annotation, `Annotated` and nested unions dissolved, None left out."""
    if get_origin(annotation) is Annotated:
        return members(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return tuple(member for part in get_args(annotation) for member in members(part))
    return () if annotation is type(None) else (annotation,)


def sections(annotation: object) -> tuple[type[BaseModel], ...]:
    """Config classes among the alternatives of an annotation."""
    return tuple(member for member in members(annotation) if isinstance(member, type) and issubclass(member, BaseModel))


def tag_field(annotation: object) -> str | None:
    """Name of the field that tells the variants of a union apart, such as `kind`; None for anything else."""
    variants = sections(annotation)
    if len(variants) < 2:
        return None
    return next((name for name in variants[0].model_fields if _tells_apart(name, variants)), None)


def tags(annotation: object) -> dict[str, type[BaseModel]]:
    """Variants of a tagged union by tag: `{"full": FullTuning, "lora": LoraTuning}`."""
    name = tag_field(annotation)
    if name is None:
        return {}
    variants = sections(annotation)
    return {str(tag): variant for variant in variants for tag in get_args(variant.model_fields[name].annotation)}


def chosen_section(annotation: object, data: Mapping[str, object]) -> type[BaseModel] | None:
    """The config class that `data` is meant for: the only one, or the variant that its tag names; None if undecided."""
    variants = sections(annotation)
    if len(variants) == 1:
        return variants[0]
    return tags(annotation).get(str(data.get(tag_field(annotation) or "")))


def child(annotation: object, key: str | int) -> object:
    """Annotation of what stands under `key` in one alternative (no union); None where it is unknown."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        field = annotation.model_fields.get(str(key))
        return field.annotation if field else None
    arguments = get_args(annotation)
    if get_origin(annotation) is dict:
        return arguments[1]
    if get_origin(annotation) is tuple and arguments[-1] is not Ellipsis and isinstance(key, int):
        return arguments[key] if key < len(arguments) else None
    return arguments[0] if get_origin(annotation) in (tuple, list) else None


def default_of(field: FieldInfo) -> Any:
    """A field's default value, factories called; `PydanticUndefined` for a required field."""
    return field.get_default(call_default_factory=True, validated_data={})


def type_in_words(annotation: object, field: FieldInfo | None = None) -> str:
    """What a value may be, in a config writer's words, bounds included: `integer >= 1 | null`."""
    words = (
        [_variants_in_words(annotation)]
        if tags(annotation)
        else [_member_in_words(item) for item in members(annotation)]
    )
    if words and field is not None:
        words[0] += _bounds_in_words(field.metadata)
    if _is_optional(annotation):
        words.append("null")
    return " | ".join(dict.fromkeys(words))


def _tells_apart(name: str, variants: tuple[type[BaseModel], ...]) -> bool:
    fields = [variant.model_fields.get(name) for variant in variants]
    if not all(field and get_origin(field.annotation) is Literal for field in fields):
        return False
    values = [value for field in fields if field for value in get_args(field.annotation)]
    return len(set(values)) == len(values)


def _describe(cls: type[BaseModel], *, prefix: str, variant: str, defaults: object) -> Iterator[FieldDescription]:
    for name, field in cls.model_fields.items():
        dotted = prefix + name
        default = getattr(defaults, name) if isinstance(defaults, cls) else default_of(field)
        parts, suffix = _parts(field.annotation)
        if suffix or len(sections(parts)) != 1 or _is_optional(parts):
            yield _leaf(dotted, field, default, variant)
        yield from _describe_parts(parts, dotted + suffix, variant, default)


def _describe_parts(annotation: object, dotted: str, variant: str, default: object) -> Iterator[FieldDescription]:
    tag_name = f"{dotted}.{tag_field(annotation)}"
    for section in sections(annotation):
        tag = next((tag for tag, candidate in tags(annotation).items() if candidate is section), None)
        both = ", ".join(filter(None, (variant, f"{tag_name}={tag}" if tag else "")))
        inner = _describe(section, prefix=f"{dotted}.", variant=both, defaults=default)
        yield from (item for item in inner if item.name != tag_name)


def _parts(annotation: object) -> tuple[object, str]:
    """The annotation that holds sections, and what stands between its name and theirs: nothing, or `.N` for a list."""
    elements = (child(member, 0) for member in members(annotation) if get_origin(member) in (tuple, list))
    return next(((element, ".N") for element in elements if sections(element)), (annotation, ""))


def _leaf(dotted: str, field: FieldInfo, default: object, variant: str) -> FieldDescription:
    shown = "required" if default is PydanticUndefined else inline(_plain(default, field.annotation), limit=60)
    description = " ".join((field.description or "").split())
    return FieldDescription(dotted, type_in_words(field.annotation, field), shown, description, variant)


def _plain(value: object, annotation: object) -> object:
    """Shortens a section to the tag that chose it; everything else becomes plain data."""
    if isinstance(value, BaseModel):
        name = tag_field(annotation)
        return getattr(value, name) if name else value.model_dump(mode="json")
    if isinstance(value, tuple | list):
        return [_plain(item, None) for item in value]
    return str(value) if isinstance(value, Path) else value


def _is_optional(annotation: object) -> bool:
    if get_origin(annotation) is Annotated:
        return _is_optional(get_args(annotation)[0])
    return get_origin(annotation) in (Union, types.UnionType) and type(None) in get_args(annotation)


def _variants_in_words(annotation: object) -> str:
    return f"section with {tag_field(annotation)} {' | '.join(tags(annotation))}"


def _member_in_words(member: Any) -> str:
    if get_origin(member) is Literal:
        return " | ".join(inline(value) for value in get_args(member))
    if isinstance(member, type) and issubclass(member, BaseModel):
        return f"section with the keys {', '.join(member.model_fields)}"
    if get_origin(member) in (tuple, list):
        return _list_in_words(get_args(member))
    if get_origin(member) is dict:
        return f"mapping of text to {type_in_words(get_args(member)[1])}"
    return _SCALAR_NAMES.get(member, getattr(member, "__name__", str(member)))


def _list_in_words(arguments: tuple[Any, ...]) -> str:
    first, *others = arguments
    if others and others[-1] is not Ellipsis:
        return f"list [{', '.join(type_in_words(argument) for argument in arguments)}]"
    element = type_in_words(first)
    return f"list of {f'({element})' if ' | ' in element else element}"


def _bounds_in_words(metadata: list[Any]) -> str:
    found = [f"{sign}{getattr(item, name)}" for name, sign in _BOUNDS for item in metadata if hasattr(item, name)]
    for item in metadata:
        if getattr(item, "min_length", None) is not None:
            found.append(f"with at least {item.min_length}")
        if getattr(item, "max_length", None) is not None:
            found.append(f"with at most {item.max_length}")
        if getattr(item, "pattern", None) is not None:
            found.append(f"matching {item.pattern}")
    return " " + " and ".join(found) if found else ""
