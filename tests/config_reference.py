"""configs/README.md: every key of every stage, made from the config classes.

`make readme` rewrites it; test_readme.py fails when it is out of date.
"""

from pathlib import Path

from rlhf.config_loading.loader import describe_fields
from rlhf.stages import STAGES, Stage, resolve

REFERENCE = Path(__file__).resolve().parents[1] / "configs" / "README.md"
_INTRODUCTION = """# Every configuration key

`rlhf STAGE --keys` shows the same on the terminal. A key is given in the stage's YAML file or as `a.b=value` after it.
Of a section with `kind`, the keys of the chosen variant apply; it is named in brackets.
"""


def reference() -> str:
    """A section for each stage, a line for each key."""
    return "\n".join([_INTRODUCTION, *(_section(stage) for stage in STAGES.values())])


def _section(stage: Stage) -> str:
    lines = [f"## rlhf {stage.name}", "", f"{stage.summary[0].upper()}{stage.summary[1:]}.", ""]
    for field in describe_fields(resolve(stage.config)):
        variant = f" [{field.variant}]" if field.variant else ""
        default = "required" if field.default == "required" else f"default `{field.default}`"
        lines.append(f"- `{field.name}`{variant}: {field.type}; {default}. {' '.join(field.description.split())}")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    REFERENCE.write_text(reference(), encoding="utf-8")
