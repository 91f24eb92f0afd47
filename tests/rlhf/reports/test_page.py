from html.parser import HTMLParser
from pathlib import Path

import pytest

from rlhf.reports.charts import Chart, Series
from rlhf.reports.page import (
    Answer,
    Headline,
    Listing,
    ReportPage,
    Sample,
    Section,
    Table,
    Verdict,
    format_column,
    render_page,
    write_report,
)

HOSTILE = "<script>alert(1)</script><img src=http://evil/x onerror=alert(2)> & \"quoted\" 'too'"


class Reader(HTMLParser):
    """Collects the tags, attributes and text of a page, as a browser would see them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += data


def page_with(text: str) -> ReportPage:
    """A page that holds `text` in every place that takes one."""
    section = Section(
        text,
        text,
        [Table([text, "n"], [[text, 1.5]], text, text)],
        [Chart(text, text, text, [Series(text, [0, 1], [1.0, 2.0]), Series("b", [0], [1.0])], description=text)],
        [Sample(text, [Answer(text, text, {text: 1.0})])],
        [Listing(text, text)],
    )
    return ReportPage(text, text, [Verdict(text, "good")], [Headline(text, text, text)], [section] * 4)


def test_text_from_anywhere_stays_text() -> None:
    hostile, plain = Reader(render_page(page_with(HOSTILE))), Reader(render_page(page_with("plain")))
    assert hostile.tags == plain.tags
    assert [name for name, _ in hostile.attributes] == [name for name, _ in plain.attributes]
    assert hostile.text.count("<script>alert(1)</script>") == plain.text.count("plain") > 0


def test_the_page_loads_nothing_and_runs_nothing() -> None:
    html = render_page(page_with("plain"))
    reader = Reader(html)
    assert not {"script", "link", "img", "iframe", "object"} & set(reader.tags)
    assert not {"src", "srcset", "onclick", "onload"} & {name for name, _ in reader.attributes}
    assert all(value is not None and value.startswith("#") for name, value in reader.attributes if name == "href")
    assert "http:" not in html
    assert "https:" not in html
    assert "url(" not in html


def test_links_lead_to_the_sections() -> None:
    attributes = Reader(render_page(page_with("plain"))).attributes
    targets = {f"#{value}" for name, value in attributes if name == "id"}
    assert {value for name, value in attributes if name == "href"} == targets
    assert len(targets) == 4


def test_an_empty_page_is_still_a_page() -> None:
    reader = Reader(render_page(ReportPage("Only a title")))
    assert "Only a title" in reader.text
    assert "section" not in reader.tags


def test_numbers_of_a_column_share_their_decimals() -> None:
    assert format_column([0.5, 12.0, None]) == ["0.5", "12.0", "\N{EN DASH}"]
    assert format_column([1.25, 1000, 3]) == ["1.25", "1,000.00", "3.00"]
    assert format_column([10, 2]) == ["10", "2"]
    assert format_column([1e-5, 2.0]) == ["1e-5", "2"]
    assert format_column([0.5, float("nan"), "n/a"]) == ["0.5", "NaN", "n/a"]


def test_a_ragged_table_is_refused() -> None:
    page = ReportPage("t", sections=[Section("s", tables=[Table(("a", "b"), [(1, 2), (3,)], "results")])])
    with pytest.raises(ValueError, match="table 'results': row 2 has 1 cells for 2 columns"):
        render_page(page)


def test_the_report_lies_in_the_run_folder_and_replaces_the_one_before(tmp_path: Path) -> None:
    assert write_report(tmp_path, ReportPage("the earlier page")) == tmp_path / "report.html"
    write_report(tmp_path, ReportPage("second ñ"))
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "second ñ" in html
    assert "the earlier page" not in html
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
