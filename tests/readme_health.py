"""The README's table of symptoms, causes and remedies, made from the health rules of PPO.

`make readme` rewrites it; test_readme.py fails when it is out of date.
"""

from pathlib import Path

from rlhf.runtime.health.catalogue import explained_rules

README = Path(__file__).resolve().parents[1] / "README.md"
SECTION, HEADER = "## My PPO run looks wrong\n", "| alert | symptom | what it means | what to do |\n|---|---|---|---|\n"


def table() -> str:
    """One row a rule, in the order in which they are looked at."""
    rows = [
        f"| `{rule.name}` ({rule.severity}) | {rule.symptom} | {rule.cause} | {rule.remedy} |\n"
        for rule in explained_rules()
    ]
    return HEADER + "".join(rows)


def with_health_table(readme: str) -> str:
    """The README's text with today's rules in the place of the written ones."""
    before, rest = readme.split(SECTION, 1)
    text, old = rest.split(HEADER, 1)
    return before + SECTION + text + table() + "\n" + old.split("\n\n", 1)[1]


if __name__ == "__main__":
    README.write_text(with_health_table(README.read_text(encoding="utf-8")), encoding="utf-8")
