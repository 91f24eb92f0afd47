"""Help texts of the command line, built from the stage registry and the config classes' own descriptions."""

import textwrap
from collections.abc import Iterable
from typing import TYPE_CHECKING

from rlhf.stages import Stage

if TYPE_CHECKING:
    from rlhf.config_loading.loader import FieldDescription

OPTIONS = {
    "--dry-run": "check the config, print it resolved with the plan of the run, start nothing",
    "--resume": "continue the run in its folder from the last checkpoint",
    "--keys": "list every config key of the stage with type, default and meaning",
    "--help": "show this text",
}
_WIDTH = 100


def overview(stages: Iterable[Stage]) -> list[str]:
    """Text of `rlhf --help`: the form of a command, the stages, the first things to try."""
    listed = list(stages)
    return [
        "rlhf: align language models with human preferences, from pretraining to PPO and evaluation.",
        "",
        "usage: rlhf STAGE CONFIG [a.b=value ...] [--dry-run] [--resume]",
        "",
        "stages:",
        *_table({stage.name: stage.summary for stage in listed}),
        "",
        "A stage is described by one YAML file; a.b=value after it changes single keys of it.",
        "",
        "options of every stage:",
        *_table(OPTIONS),
        "",
        "examples:",
        *(f"  {example(stage)}" for stage in listed),
        "",
        "Errors are one line; RLHF_DEBUG=1 adds the traceback.",
    ]


def stage_help(stage: Stage) -> list[str]:
    """Text of `rlhf STAGE --help`."""
    config = "CONFIG" if stage.needs_config else "[CONFIG]"
    config = config if stage.words is None else f"{stage.words[:-1].upper()} ..."
    options = {name: text for name, text in OPTIONS.items() if stage.is_resumable or name != "--resume"}
    return [
        f"rlhf {stage.name}: {stage.summary}.",
        "",
        f"usage: rlhf {stage.name} {config} [a.b=value ...] {' '.join(f'[{name}]' for name in options)}",
        "",
        "options:",
        *_table(options),
        "",
        "examples:",
        *(f"  {example(stage, index)}" for index in range(len(stage.examples))),
    ]


def key_list(fields: Iterable["FieldDescription"]) -> list[str]:
    """Text of `rlhf STAGE --keys`: for each key its type, its default, the variant it belongs to, and its meaning."""
    lines: list[str] = []
    for field in fields:
        default = field.default if field.default == "required" else f"default {field.default}"
        variant = f"  [{field.variant}]" if field.variant else ""
        lines.append(f"{field.name}: {field.type}; {default}{variant}")
        lines += textwrap.wrap(field.description, _WIDTH, initial_indent="    ", subsequent_indent="    ")
    return lines


def example(stage: Stage, index: int = 0) -> str:
    """One of a stage's example commands."""
    return f"rlhf {stage.name} {stage.examples[index]}".rstrip()


def _table(rows: dict[str, str]) -> list[str]:
    width = max(len(name) for name in rows)
    return [f"  {name:<{width}}  {text}" for name, text in rows.items()]
