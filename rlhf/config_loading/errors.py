"""Validation errors in a config writer's words: one line with the field, the value, what is allowed and the remedy.

Owns the wording and the search for near names. Raises nothing and checks nothing: pydantic found the errors.
"""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from rlhf.config_loading.fields import child, describe_fields, members, sections, tag_field, tags, type_in_words
from rlhf.config_loading.yaml import inline, kind_of

_BOUND_ERRORS = ("greater_than", "greater_than_equal", "less_than", "less_than_equal", "multiple_of")
_LENGTH_ERRORS = ("too_short", "too_long", "string_too_short", "string_too_long", "string_pattern_mismatch")
_SUGGESTIONS = 3


@dataclass(frozen=True)
class _Place:
    """Where in the config an error is: names of keys, without the union branches that pydantic puts between them."""

    keys: tuple[str, ...]
    annotation: object
    field: FieldInfo | None
    owner: type[BaseModel] | None

    @property
    def dotted(self) -> str:
        return ".".join(self.keys)


def explain(cls: type[BaseModel], error: ValidationError) -> list[str]:
    """Turns the errors of one validation into lines, one a field, in the order of the config.

    A field that fails every branch of a union is one problem and gets one line; so is a section or list that fails only
    because of something inside it.
    """
    lines: dict[tuple[str, ...], str] = {}
    for details in error.errors(include_url=False):
        place = _locate(cls, details["loc"])
        lines.setdefault(place.keys, _line(cls, place, details))
    causes = {keys[:length] for keys in lines for length in range(len(keys))}
    return [line for keys, line in lines.items() if keys not in causes]


def _locate(cls: type[BaseModel], location: Iterable[str | int]) -> _Place:
    place = _Place((), cls, None, None)
    steps = list(location)
    for index, step in enumerate(steps):
        alternatives = members(place.annotation)
        if len(alternatives) > 1:
            if index < len(steps) - 1:
                place = replace(place, annotation=_branch(place.annotation, str(step)))
            continue
        holder = alternatives[0] if alternatives else None
        owner = next(iter(sections(holder)), None)
        field = owner.model_fields.get(str(step)) if owner else None
        place = _Place((*place.keys, str(step)), child(holder, step), field, owner)
    return place


def _branch(annotation: object, label: str) -> object:
    """The alternative with parts that pydantic's label names: a variant by tag, a class, else the list or mapping."""
    named = {variant.__name__: variant for variant in sections(annotation)} | tags(annotation)
    containers = (member for member in members(annotation) if get_origin(member) in (tuple, list, dict))
    return named.get(label) or next(containers, None)


def _line(cls: type[BaseModel], place: _Place, details: Mapping[str, Any]) -> str:
    kind = details["type"]
    if kind == "extra_forbidden":
        return _unknown_key(cls, place, details["input"])
    if kind == "missing":
        return _missing_key(place)
    if kind in ("union_tag_invalid", "union_tag_not_found") and isinstance(details["input"], Mapping):
        return _unknown_variant(place, details["input"])
    if kind == "value_error":
        return _own_check(place, details)
    return _wrong_value(place, details)


def _unknown_key(cls: type[BaseModel], place: _Place, value: object) -> str:
    return f"{place.dotted}: unknown key (received {inline(value)}); {_known_names(cls, place)}"


def _known_names(cls: type[BaseModel], place: _Place) -> str:
    fields = describe_fields(cls)
    general = ".".join("N" if key.isdecimal() else key for key in place.keys)
    # A section has no entry of its own, its fields have.
    inside = [item for item in fields if f"{item.name}.".startswith(f"{general}.")]
    variants = list(dict.fromkeys(item.variant for item in inside if item.variant))
    if variants:
        return f"only exists with {' or '.join(variants)}; choose that or remove the key"
    known = list(place.owner.model_fields) if place.owner else []
    parent = place.dotted.removesuffix(place.keys[-1])
    close = [parent + name for name in difflib.get_close_matches(place.keys[-1], known, n=3)]
    elsewhere = [item.name for item in fields if f".{item.name}".endswith(f".{place.keys[-1]}")]
    suggestions = list(dict.fromkeys(close + elsewhere))[:_SUGGESTIONS]
    if suggestions:
        nesting = " (nested, one key a level)" if "." in place.keys[-1] else ""
        return f"did you mean {' or '.join(suggestions)}?{nesting}"
    return f"known here: {', '.join(known) or 'none'}; rename or remove it"


def _missing_key(place: _Place) -> str:
    name = place.dotted
    description = " ".join((place.field.description or "").split()).rstrip(".") if place.field else ""
    purpose = f" ({description})" if description else ""
    return f"{name}: missing; needs {_allowed(place)}{purpose}; add it to the file or pass {name}=VALUE"


def _unknown_variant(place: _Place, value: Mapping[str, object]) -> str:
    tag = tag_field(place.annotation) or "kind"
    name = f"{place.dotted}.{tag}"
    allowed = list(tags(place.annotation))
    if tag not in value:
        return f"{name}: missing; allowed: {' | '.join(allowed)}; name the variant, or pass {name}={allowed[0]}"
    received = value[tag]
    return f"{name}: received {inline(received)}; allowed: {' | '.join(allowed)}; {_nearest(str(received), allowed)}"


def _own_check(place: _Place, details: Mapping[str, Any]) -> str:
    message = " ".join(str(details["ctx"]["error"]).split())
    is_section = isinstance(details["input"], Mapping) or not place.keys
    if is_section:
        return f"{place.dotted}: {message}" if place.keys else message
    return f"{place.dotted}: received {inline(details['input'])}; {message}"


def _wrong_value(place: _Place, details: Mapping[str, Any]) -> str:
    value = details["input"]
    kind = "" if value is None or isinstance(value, bool) else f" ({kind_of(value)})"
    received = f"received {inline(value)}{kind}; allowed: {_allowed(place)}; {_remedy(place, details)}"
    return f"{place.dotted}: {received}" if place.keys else received


def _allowed(place: _Place) -> str:
    return type_in_words(place.annotation, place.field)


def _remedy(place: _Place, details: Mapping[str, Any]) -> str:
    kind, value, name = details["type"], details["input"], place.dotted
    allowed = type_in_words(place.annotation)
    if kind in _BOUND_ERRORS + _LENGTH_ERRORS:
        return "choose a value within that bound"
    if kind == "finite_number":
        return "choose a finite number"
    if kind == "literal_error":
        return _nearest(str(value), allowed.split(" | "))
    if value is None:
        return _remedy_for_null(place)
    if str(value) in tags(place.annotation):
        tag = tag_field(place.annotation)
        return f"write {tag}: {value} indented below it, or pass {name}.{tag}={value}"
    if isinstance(value, str):
        return _remedy_for_text(value, allowed)
    if isinstance(value, float) and "integer" in allowed and value.is_integer():
        return f"write {int(value)}, without point or exponent"
    if isinstance(value, bool | int | float) and ("text" in allowed or "path" in allowed):
        return f'quote it: {name}=\'"{inline(value)}"\' on the command line, "{inline(value)}" in the file'
    if "list" in allowed and not isinstance(value, list):
        return f"write a list: [{inline(value)}]"
    return f"change it in the file or pass {name}=VALUE"


def _remedy_for_text(value: str, allowed: str) -> str:
    if "true" in allowed:
        return "write true or false"
    if "integer" in allowed or "number" in allowed:
        return "remove the quotes" if _is_number(value) else "write a number"
    if "list" in allowed:
        return f"write a list: [{inline(value)}]"
    return "write a section: its keys indented below it"


def _remedy_for_null(place: _Place) -> str:
    has_default = place.field is not None and not place.field.is_required()
    return "give a value, or remove the key to get its default" if has_default else "give a value"


def _nearest(received: str, allowed: list[str]) -> str:
    close = difflib.get_close_matches(received, allowed, n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else "choose one of them"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
