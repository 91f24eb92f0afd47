"""ARCHITECTURE.md keeps step with the code: the index of formulas, and the settings that its stage pages name."""

import ast
import re
from pathlib import Path

import pytest

from rlhf.config_loading.loader import describe_fields
from rlhf.stages import STAGES, resolve

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
CODE = re.compile(r"`([^`]+)`")
SURNAME, YEAR = re.compile(r"[A-Z][A-Za-zé-]+"), re.compile(r"\b(?:19|20)\d\d\b")
KEY = re.compile(r"^[a-z_]+(\.[a-z_]+)+$")


def part(title: str) -> str:
    """The text below a heading of the second level."""
    return PAGE.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]


def index_rows() -> list[tuple[str, str, str, str]]:
    rows = [line.strip("|").split("|") for line in part("Where a formula lives").splitlines() if line.startswith("|")]
    return [tuple(cell.strip() for cell in row) for row in rows[2:]]  # pyright: ignore[reportReturnType]


def defined_names(path: Path) -> set[str]:
    body = ast.parse(path.read_text(encoding="utf-8")).body
    return {node.name for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef)}


@pytest.mark.parametrize("row", index_rows(), ids=lambda row: row[0])
def test_a_formula_of_the_index_is_defined_in_its_file_which_cites_its_source(row: tuple[str, str, str, str]) -> None:
    _, where, names, sources = row
    path = ROOT / where
    assert set(CODE.findall(names)) <= defined_names(path)
    assert CODE.findall(names), "name what implements it"
    text = path.read_text(encoding="utf-8")
    for source in sources.split(";"):
        if source.strip() != "-":
            author, year = SURNAME.search(source), YEAR.search(source)
            assert author is not None
            assert year is not None
            cited = re.compile(rf"{author.group()}[^\d\n]{{0,40}}\n?[^\d\n]{{0,40}}{year.group()}")
            assert cited.search(text), f"{where} does not cite {source.strip()}"


def test_every_algorithm_file_is_in_the_index() -> None:
    indexed = {row[1] for row in index_rows()}
    files = {f"rlhf/algorithms/{path.name}" for path in (ROOT / "rlhf/algorithms").glob("[a-z]*.py")}
    assert files <= indexed


def stage_pages() -> list[tuple[str, str]]:
    """(headline, text) of each stage page."""
    found = re.split(r"^### ", part("The stages"), flags=re.MULTILINE)[1:]
    return [(page.splitlines()[0], page.partition("\n")[2]) for page in found]


@pytest.mark.parametrize("page", stage_pages(), ids=lambda page: page[0])
def test_the_keys_that_a_stage_page_names_are_keys_of_that_stage(page: tuple[str, str]) -> None:
    names = re.findall(r"rlhf ([a-z-]+)", page[0])
    assert names
    keys = {field.name for name in names for field in describe_fields(resolve(STAGES[name].config))}
    # The tag of a variant stands with its section.
    keys |= {f"{key.rpartition('.')[0]}.kind" for key in keys}
    named = [word for word in CODE.findall(page[1]) if KEY.match(word) and not word.endswith((".jsonl", ".html"))]
    assert [word for word in named if word not in keys] == []


def test_every_stage_has_a_page() -> None:
    described = {name for headline, _ in stage_pages() for name in re.findall(r"rlhf ([a-z-]+)", headline)}
    assert described == set(STAGES)
