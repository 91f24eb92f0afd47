import json
from pathlib import Path

import pytest

from rlhf.cli import main
from rlhf.reports.comparison import comparison_page, curve, group_repeats, read_runs
from rlhf.reports.page import render_page
from rlhf.runtime.run_folder import RunFolder


def write_run(folder: Path, *, seed: int, rate: float = 0.1, scores: tuple[float, ...], ends: bool = True) -> Path:
    config = {"run_dir": str(folder), "seed": seed, "optimizer": {"learning_rate": rate}, "tracking": {"wandb": "off"}}
    with RunFolder.create(folder, config) as run:
        for step, score in enumerate(scores, start=1):
            run.append_metrics(step, {"objective/scores": score, "objective/kl_coef": 0.5})
        if ends:
            run.write_summary({"steps": len(scores), "kl": scores[-1], "sft": {"ppl": 2.0 * scores[-1]}})
    return folder


def test_runs_that_differ_in_the_seed_alone_become_one_band(tmp_path: Path) -> None:
    paths = [
        write_run(tmp_path / "a", seed=0, scores=(1.0, 2.0, 6.0)),
        write_run(tmp_path / "low-rate", seed=0, rate=0.01, scores=(1.0, 1.5)),
        write_run(tmp_path / "b", seed=1, scores=(3.0, 2.0)),
    ]
    groups = group_repeats(read_runs(paths))
    assert [[run.name for run in group.runs] for group in groups] == [["a", "b"], ["low-rate"]]
    # The third step of `a` has no partner in `b`.
    band = curve(groups[0], "objective/scores")
    assert (band.x, band.y, band.low, band.high) == ([1, 2], [2.0, 2.0], [1.0, 2.0], [3.0, 2.0])
    line = curve(groups[1], "objective/scores")
    assert (line.y, line.low) == ([1.0, 1.5], None)


def test_the_page_shows_final_numbers_and_the_settings_that_differ(tmp_path: Path) -> None:
    paths = [
        write_run(tmp_path / "a", seed=0, scores=(1.0, 2.0)),
        write_run(tmp_path / "b", seed=1, scores=(1.0, 4.0)),
        write_run(tmp_path / "c", seed=0, rate=0.01, scores=(1.0, 1.5), ends=False),
    ]
    page = comparison_page(paths)
    sections = {section.title: section for section in page.sections}
    numbers = {row[0]: row[1:] for row in sections["Final numbers"].tables[0].rows}
    assert numbers["kl"] == ["3 (2 to 4)", "\N{EN DASH}"]
    assert numbers["sft.ppl"] == ["6 (4 to 8)", "\N{EN DASH}"]
    assert sections["Settings that differ"].tables[0].rows == [["optimizer.learning_rate", "0.1", "0.01"]]
    # A coefficient that never moves is no chart.
    assert [chart.title for chart in sections["Objective"].charts] == ["objective/scores"]
    assert "a (2), c (1)" in render_page(page)


@pytest.mark.parametrize(
    ("names", "message"),
    [(["a", "nothing"], "holds no run"), (["a", "a"], "is named twice; name each run once")],
)
def test_what_cannot_be_compared_is_named(tmp_path: Path, names: list[str], message: str) -> None:
    write_run(tmp_path / "a", seed=0, scores=(1.0, 2.0))
    with pytest.raises(ValueError, match=message):
        comparison_page([tmp_path / name for name in names])


def test_more_experiments_than_colours_are_refused(tmp_path: Path) -> None:
    paths = [write_run(tmp_path / str(n), seed=0, rate=0.1 + n, scores=(1.0,)) for n in range(7)]
    with pytest.raises(ValueError, match="runs: 7 experiments are more than the 6"):
        comparison_page(paths)


def test_the_command_writes_one_runs_page_or_a_comparison(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, seed in (("a", 0), ("b", 1)):
        write_run(Path(name), seed=seed, scores=(1.0, 2.0))
    assert main(["report", "a"]) == 0
    assert "objective/scores" in Path("a/report.html").read_text(encoding="utf-8")
    assert main(["report", "a", "b", "output=both.html"]) == 0
    assert "Comparison of runs" in Path("both.html").read_text(encoding="utf-8")
    assert capsys.readouterr().out == "report: a/report.html\nreport: both.html\n"
    assert main(["report", "a", "typo"]) == 2
    assert "runs: 'typo' holds no run" in capsys.readouterr().err


def test_a_page_can_be_written_while_a_run_goes_on(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", seed=0, scores=(1.0, 2.0), ends=False)
    assert main(["report", json.dumps(str(folder)).strip('"')]) == 0
    assert "has not reached its end" in (folder / "report.html").read_text(encoding="utf-8")
