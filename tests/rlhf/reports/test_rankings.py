"""The page of `rlhf rankings`: its sentences, and that nothing in the data becomes markup."""

from pathlib import Path
from typing import Any

import pytest

from reward.rankings.config import RankingsConfig
from reward.rankings.outcome import find_outcome
from reward.rankings.reading import judgements_from_rows
from rlhf.rankings import summarize
from rlhf.reports.page import ReportPage, render_page
from rlhf.reports.rankings import rankings_page
from rlhf.runtime.run_folder import RunFiles


def page_of(folder: Path, rows: list[dict[str, Any]], format: dict[str, Any], **changes: Any) -> ReportPage:
    settings = {"run_dir": str(folder), "data": {"train": "rows", "format": format}}
    config = RankingsConfig.model_validate(settings | {"fit": {"prior_std": 1.0, "bootstrap_resamples": 0}} | changes)
    RunFiles(folder).config_path.write_text("seed: 0\n", encoding="utf-8")
    outcome = find_outcome(judgements_from_rows(rows, config.data.format, source="rows"), config, [])
    return rankings_page(folder, outcome, summarize(outcome, config, rows=len(rows), written=0))


def battle(winner: str, loser: str) -> dict[str, Any]:
    return {"model_a": winner, "model_b": loser, "winner": "model_a"}


def panel(prompts: int, *, disagreeing: int) -> list[dict[str, Any]]:
    """Two raters who disagree on some of the prompts."""
    return [
        {
            "prompt": f"p{prompt}",
            "responses": ["a", "b"],
            "votes": [{"rater": "x", "choice": 0}, {"rater": "y", "choice": int(prompt < disagreeing)}],
        }
        for prompt in range(prompts)
    ]


def verdicts(page: ReportPage) -> list[tuple[str, str]]:
    return [(verdict.status, verdict.text) for verdict in page.verdicts]


def test_names_and_texts_are_escaped(tmp_path: Path) -> None:
    rows = [battle("<b>ant</b>", "bee") | {"prompt": "<i>p</i>", "response_a": "<u>x</u>", "response_b": "y"}]

    html = render_page(page_of(tmp_path, rows, {"kind": "battles"}))

    assert "&lt;b&gt;ant&lt;/b&gt;" in html
    assert not any(tag in html for tag in ("<b>ant", "<i>p", "<u>x"))


def test_many_models_are_drawn_by_rank_and_the_rest_is_in_the_file(tmp_path: Path) -> None:
    page = page_of(tmp_path, [battle(f"m{i}", f"m{i + 1}") for i in range(70)], {"kind": "battles"})

    (models,) = (section for section in page.sections if section.title == "Models")
    assert len(models.tables[0].rows) == 60
    assert "11 more in strengths.csv" in models.tables[0].note
    assert not models.charts[0].categories
    assert list(models.charts[0].series[0].x) == list(range(1, 72))


def test_few_models_are_drawn_by_name_with_their_intervals(tmp_path: Path) -> None:
    page = page_of(tmp_path, [battle("ant", "bee")] * 3, {"kind": "battles"})

    (chart, _) = next(section for section in page.sections if section.title == "Models").charts
    assert chart.categories == ["ant", "bee"]
    (series,) = chart.series
    assert series.low is not None
    assert series.high is not None
    assert series.low[0] < series.y[0] < series.high[0]
    assert "Fisher" in chart.description


@pytest.mark.parametrize(
    ("games", "status", "ending"),
    [(40, "good", "their intervals do not overlap."), (1, "neutral", "the intervals overlap.")],
)
def test_the_first_sentence_says_whether_the_best_is_told_from_the_next(
    tmp_path: Path, games: int, status: str, ending: str
) -> None:
    page = page_of(tmp_path, [battle("ant", "bee")] * games, {"kind": "battles"})

    found, text = verdicts(page)[0]
    assert (found, text.endswith(ending)) == (status, True)
    assert text.startswith("ant is the strongest model")


@pytest.mark.parametrize(
    ("disagreeing", "status", "text"),
    [
        (0, "good", "agree well"),
        (5, "neutral", "enough for tentative conclusions"),
        (11, "neutral", "one vote proves little"),
        (21, "warning", "do not agree more than by chance"),
    ],
)
def test_alpha_is_put_in_words(tmp_path: Path, disagreeing: int, status: str, text: str) -> None:
    page = page_of(tmp_path, panel(40, disagreeing=disagreeing), {"kind": "votes"})

    assert any(found == status and text in sentence for found, sentence in verdicts(page))
