"""The trees of files in README.md (packages) and ARCHITECTURE.md (modules), made from the docstrings' first lines.

`make readme` rewrites them; test_readme.py fails when one is out of date.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
README, ARCHITECTURE = ROOT / "README.md", ROOT / "ARCHITECTURE.md"
PACKAGES = ("policies", "rollout", "reward", "rlhf")
FIRST, LAST = "    policies/", "    configs/"
COLUMN = 30


def tree(*, modules: bool) -> str:
    """Every package, and with `modules` every module, with one line each; folders after files."""
    return "".join(f"{line}\n" for package in PACKAGES for line in _folder(ROOT / package, depth=1, modules=modules))


def _folder(folder: Path, *, depth: float, modules: bool) -> Iterator[str]:
    yield _line(f"{folder.name}/", folder / "__init__.py", depth)
    for path in sorted(folder.glob("*.py")) if modules else ():
        if path.name != "__init__.py":
            yield _line(path.name, path, depth + 0.5)
    for path in sorted(folder.iterdir()):
        if (path / "__init__.py").exists():
            yield from _folder(path, depth=depth + 0.5, modules=modules)


def _line(name: str, module: Path, depth: float) -> str:
    docstring = ast.get_docstring(ast.parse(module.read_text(encoding="utf-8")))
    assert docstring, f"{module.relative_to(ROOT)} has no docstring"
    summary = docstring.splitlines()[0].rstrip(".:")
    return f"{' ' * int(4 * depth)}{name} ".ljust(COLUMN) + summary


def with_tree(page: str, *, modules: bool) -> str:
    """A page's text with today's tree in the place of the written one."""
    before, rest = page.split(f"\n{FIRST}", 1)
    after = rest.split(f"\n{LAST}", 1)[1]
    return f"{before}\n{tree(modules=modules)}{LAST}{after}"


if __name__ == "__main__":
    for path in (README, ARCHITECTURE):
        page = path.read_text(encoding="utf-8")
        path.write_text(with_tree(page, modules=path == ARCHITECTURE), encoding="utf-8")
