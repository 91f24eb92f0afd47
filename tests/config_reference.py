"""configs/README.md: every key of every stage and every metric, made from the config classes and the registry.

`make readme` rewrites it; test_readme.py fails when it is out of date.
"""

from pathlib import Path

from rlhf.config_loading.loader import describe_fields
from rlhf.runtime.metric_registry import FAMILIES, GROUPS, METRICS
from rlhf.stages import STAGES, Stage, resolve

REFERENCE = Path(__file__).resolve().parents[1] / "configs" / "README.md"
_INTRODUCTION = """# Every configuration key, and every metric

`rlhf STAGE --keys` shows the same on the terminal. A key is given in the stage's YAML file or as `a.b=value` after it.
Of a section with `kind`, the keys of the chosen variant apply; it is named in brackets.
[Metrics](#metrics) stand at the end.
"""
_METRICS = """## Metrics

What a run may log, in metrics.jsonl and everywhere else, with its unit; a run refuses to log anything that is
not here. A step logs what applies to it.
"""


def reference() -> str:
    """A section for each stage with a line for each key; then the metrics, group by group."""
    groups = [_group(name, meaning) for name, meaning in GROUPS.items()]
    return "\n".join([_INTRODUCTION, *(_section(stage) for stage in STAGES.values()), _METRICS, *groups])


def _section(stage: Stage) -> str:
    lines = [f"## rlhf {stage.name}", "", f"{stage.summary[0].upper()}{stage.summary[1:]}.", ""]
    for field in describe_fields(resolve(stage.config)):
        variant = f" [{field.variant}]" if field.variant else ""
        default = "required" if field.default == "required" else f"default `{field.default}`"
        lines.append(f"- `{field.name}`{variant}: {field.type}; {default}. {' '.join(field.description.split())}")
    return "\n".join([*lines, ""])


def _group(name: str, meaning: str) -> str:
    metrics = [metric for metric in (*METRICS.values(), *FAMILIES) if metric.group == name]
    lines = [
        f"- `{one.key}`{f' ({one.unit})' if one.unit not in ('', '1') else ''}: {one.description}" for one in metrics
    ]
    return "\n".join([f"### {name}", "", meaning, "", *lines, ""])


if __name__ == "__main__":
    REFERENCE.write_text(reference(), encoding="utf-8")
