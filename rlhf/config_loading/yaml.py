"""The YAML dialect of config files: text to plain data and back.

Owns the reading rules: the YAML 1.2 core schema, in which `1e-5` is a number and `off`, `no` and `2026-01-01` are text
(PyYAML alone follows YAML 1.1, where they are text, booleans and a date), no key twice, one mapping a file. Knows
nothing of fields.
"""

import json
import re
from typing import Any

import yaml

_TAG = "tag:yaml.org,2002:"
_UNICODE_BREAK = re.compile("[\x85\u2028\u2029]")
_CORE_SCHEMA = (
    ("null", r"~|null|Null|NULL|", "~nN\0"),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+(?:_[0-9]+)*|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    ("float", r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?", "-+.0123456789"),
    ("float", r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", "-+."),
    ("merge", r"<<", "<"),
)


class ConfigError(ValueError):
    """A config that cannot be used; one line for each problem, each with the field, the value and the remedy."""


class _CoreLoader(yaml.SafeLoader):
    """Safe loader with the core schema's scalars that refuses a repeated key."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        _refuse_repeated_keys(node)
        return node

    def construct_core_int(self, node: yaml.ScalarNode) -> int:
        text = self.construct_scalar(node).replace("_", "")
        return int(text, 0) if text.startswith(("0x", "0o")) else int(text)


class _InlineDumper(yaml.SafeDumper):
    """Dumper for messages: quotes only what the core schema would read as something else than text."""


class _FileDumper(yaml.SafeDumper):
    """Dumper for files: quotes what either YAML version would read as something else, so that other tools agree."""

    def represent_text(self, text: str) -> yaml.ScalarNode:
        # PyYAML writes Unicode's line breaks bare in every other style and reads them back as spaces.
        style = '"' if _UNICODE_BREAK.search(text) else None
        return self.represent_scalar(_TAG + "str", text, style=style)


_CoreLoader.yaml_implicit_resolvers = {}  # without this, YAML 1.1's would be inherited
_InlineDumper.yaml_implicit_resolvers = {}
for _name, _pattern, _first in _CORE_SCHEMA:
    _regexp = re.compile(f"^(?:{_pattern})$")
    _starts = ["" if character == "\0" else character for character in _first]
    for _dialect in (_CoreLoader, _InlineDumper, _FileDumper):
        _dialect.add_implicit_resolver(_TAG + _name, _regexp, _starts)
_FileDumper.add_representer(str, _FileDumper.represent_text)
_CoreLoader.add_constructor(_TAG + "int", _CoreLoader.construct_core_int)


def parse_yaml(text: str, *, source: str) -> Any:
    """Reads one YAML document into dicts, lists and scalars.

    Args:
        text: the document.
        source: what error messages call it: a file name, or the override that the text came from.

    Raises:
        ConfigError: the text is no valid YAML, holds a key twice or a tag that is not plain data.
    """
    try:
        data = yaml.load(text, Loader=_CoreLoader)
        json.dumps(data)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{source}:{mark.line + 1}" if mark and "\n" in text else source
        problem = ", ".join(filter(None, (error.context, error.problem)))
        raise ConfigError(f"{place}: not valid YAML: {problem}; {_remedy(problem)}") from error
    except yaml.YAMLError as error:
        problem = " ".join(str(error).split())
        raise ConfigError(f"{source}: not valid YAML: {problem}; remove the control characters") from error
    except (ValueError, TypeError) as error:
        raise ConfigError(
            f"{source}: no tree of plain values ({error}); remove the recursive alias or the tag"
        ) from error
    return data


def parse_mapping(text: str, *, source: str) -> dict[str, Any]:
    """Reads a whole config file; an empty one is an empty mapping.

    Raises:
        ConfigError: as `parse_yaml`, or the document is a list or a scalar.
    """
    data = parse_yaml(text, source=source)
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError(f"{source}: received {kind_of(data)} at the top; allowed: mapping; write lines `key: value`")
    return data


def dump_yaml(data: object) -> str:
    """Writes plain data so that `parse_yaml` reads the same back, keys in their order."""
    return yaml.dump(data, Dumper=_FileDumper, sort_keys=False, allow_unicode=True, width=120)


def inline(data: object, *, limit: int = 80) -> str:
    """Shows a value on one line as a user would write it in YAML, cut after `limit` characters."""
    text = yaml.dump(
        data, Dumper=_InlineDumper, default_flow_style=True, sort_keys=False, allow_unicode=True, width=10**6
    )
    line = " ".join(text.removesuffix("...\n").split())
    return line if len(line) <= limit else line[: limit - 3] + "..."


def kind_of(data: object) -> str:
    """Names the kind of a plain value in a config writer's words."""
    names = {bool: "true/false", int: "integer", float: "number", str: "text", list: "list", dict: "mapping"}
    return names.get(type(data), "null")


def _refuse_repeated_keys(node: yaml.MappingNode) -> None:
    seen: dict[str, yaml.Mark] = {}
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode) or key.tag == _TAG + "merge":
            continue
        if key.value in seen:
            problem = f"key {key.value!r} stands twice, first on line {seen[key.value].line + 1}"
            raise yaml.constructor.ConstructorError(problem=problem, problem_mark=key.start_mark)
        seen[key.value] = key.start_mark


def _remedy(problem: str) -> str:
    if "twice" in problem:
        return "keep one of the two"
    if "\\t" in problem:
        return "indent with spaces, not tabs"
    if "mapping values" in problem:
        return "indent the keys of one section alike, and quote text that contains ': '"
    return "check the indentation and brackets there, and quote text that begins with a special character"
