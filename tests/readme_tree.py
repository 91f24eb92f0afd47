"""The README's tree of files, made from the first line of every module's docstring.

`make readme` rewrites it; test_readme.py fails when it is out of date.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PACKAGES = ("policies", "rollout", "reward", "rlhf")
FIRST, LAST = "    policies/", "    configs/"
COLUMN = 30


def tree() -> str:
    """Every package and module with one line each, folders after files."""
    return "".join(f"{line}\n" for package in PACKAGES for line in _folder(ROOT / package, depth=1))


def _folder(folder: Path, *, depth: float) -> Iterator[str]:
    yield _line(f"{folder.name}/", folder / "__init__.py", depth)
    for path in sorted(folder.glob("*.py")):
        if path.name != "__init__.py":
            yield _line(path.name, path, depth + 0.5)
    for path in sorted(folder.iterdir()):
        if (path / "__init__.py").exists():
            yield from _folder(path, depth=depth + 0.5)


def _line(name: str, module: Path, depth: float) -> str:
    docstring = ast.get_docstring(ast.parse(module.read_text(encoding="utf-8")))
    assert docstring, f"{module.relative_to(ROOT)} has no docstring"
    summary = docstring.splitlines()[0].rstrip(".:")
    return f"{' ' * int(4 * depth)}{name} ".ljust(COLUMN) + summary


def with_tree(readme: str) -> str:
    """The README's text with today's tree in the place of the written one."""
    before, rest = readme.split(FIRST, 1)
    return before + tree() + LAST + rest.split(f"\n{LAST}", 1)[1]


if __name__ == "__main__":
    README.write_text(with_tree(README.read_text(encoding="utf-8")), encoding="utf-8")
