"""`rlhf rankings`, end to end: three kinds of judgements, what is written, and how mistakes are answered."""

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reward.rankings import agreement
from reward.rankings.config import RankingsConfig
from rlhf import cli
from rlhf.rankings import run, to_csv
from rlhf.runtime.json_lines import read_objects
from rlhf.runtime.run_folder import RunFiles

STRENGTHS = {"ant": 1.0, "bee": 0.2, "cat": -1.2}


def write_rows(folder: Path, rows: list[dict[str, Any]], name: str = "rows.jsonl") -> str:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def rank(folder: Path, rows: list[dict[str, Any]], kind: str, /, **changes: Any) -> RunFiles:
    format = {"kind": kind} | changes.pop("format", {})
    data = {"train": write_rows(folder, rows), "format": format} | changes.pop("data", {})
    settings = {"run_dir": str(folder / "run"), "data": data, "fit": {"bootstrap_resamples": 20}}
    run(RankingsConfig.model_validate(settings | changes), resume=False)
    return RunFiles(folder / "run")


def table(files: RunFiles, name: str) -> list[dict[str, str]]:
    with (files.path / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def rows_of(files: RunFiles, name: str) -> list[Any]:
    return [*read_objects(files.path / name)]


def summary_of(files: RunFiles) -> dict[str, Any]:
    return {**files.read_summary()}


def battles(count: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    for _ in range(count):
        first, second = rng.choice(list(STRENGTHS), size=2, replace=False).tolist()
        lead = STRENGTHS[first] - STRENGTHS[second]
        odds = np.exp([lead / 2, -lead / 2, -1.0])
        winner = ["model_a", "model_b", "tie"][rng.choice(3, p=odds / odds.sum())]
        rows.append({"model_a": first, "model_b": second, "winner": winner})
    return rows


def votes(prompts: int, raters: int = 4) -> list[dict[str, Any]]:
    """Raters who err in one vote of five; the last one always says the opposite."""
    rng = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    for prompt in range(prompts):
        ballots: list[dict[str, Any]] = []
        for rater in range(raters):
            choice = int(rng.random() < 0.2)
            ballots.append({"rater": f"r{rater}", "choice": 1 - choice if rater == raters - 1 else choice})
        responses = [f"good {prompt}", f"bad {prompt}"]
        rows.append({"prompt": f"p{prompt}", "responses": responses, "votes": ballots})
    return rows


def scored(prompts: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    return [
        {
            "prompt": [{"role": "user", "content": f"p{prompt}"}],
            "responses": [
                {"text": f"{model} {prompt}", "model": model, "score": float(strength + rng.normal())}
                for model, strength in STRENGTHS.items()
            ],
        }
        for prompt in range(prompts)
    ]


def test_battles_become_strengths_with_both_intervals_and_elo(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = rank(tmp_path, battles(600), "battles")

    rows, summary = table(files, "strengths.csv"), summary_of(files)
    assert [row["model"] for row in rows] == ["ant", "bee", "cat"]
    for row in rows:
        truth = STRENGTHS[row["model"]]
        assert float(row["fisher_low"]) < truth < float(row["fisher_high"])
        assert float(row["bootstrap_low"]) < float(row["strength"]) < float(row["bootstrap_high"])
        assert float(row["rating"]) == pytest.approx(1000 + 400 / np.log(10) * float(row["strength"]))
    assert [float(row["elo"]) for row in rows] == sorted((float(row["elo"]) for row in rows), reverse=True)
    assert json.loads((files.path / "strengths.json").read_text())[0]["model"] == "ant"
    assert summary["fit"]["tie_parameter"] == pytest.approx(np.exp(-1.0), rel=0.25)
    assert (summary["written_file"], summary["prompts_without_text"]) == (None, 600)
    assert "ant" in capsys.readouterr().out
    assert "prompts have no texts" in files.report_path.read_text(encoding="utf-8")


def test_votes_become_rankings_and_the_contrarian_is_reported(tmp_path: Path) -> None:
    files = rank(tmp_path, votes(40), "votes")

    summary, raters = summary_of(files), table(files, "raters.csv")
    rankings = rows_of(files, "rankings.jsonl")
    assert len(rankings) == summary["written_rows"] == 40
    assert all(row["responses"][0] == f"good {row['prompt'][1:]}" for row in rankings)
    assert np.mean([row["ranking"] == [[0], [1]] for row in rankings]) > 0.9
    assert summary["raters_who_disagree"] == ["r3"]
    assert [float(row["weight"]) > 0.3 for row in raters] == [True, True, True, False]
    assert [row["disagrees"] for row in raters] == ["False", "False", "False", "True"]
    assert "Disagrees with all others more than chance allows: r3." in files.report_path.read_text(encoding="utf-8")


def test_weighing_raters_changes_the_rankings_that_the_contrarian_would_decide(tmp_path: Path) -> None:
    def correct(name: str, raters: dict[str, Any]) -> float:
        (tmp_path / name).mkdir()
        files = rank(tmp_path / name, votes(60), "votes", raters=raters)
        rows = rows_of(files, "rankings.jsonl")
        return sum(row["ranking"] == [[0], [1]] for row in rows)

    assert correct("estimated", {"kind": "estimated"}) > correct("equal", {"kind": "equal"})


def test_scores_become_pairs_with_their_difference_as_margin(tmp_path: Path) -> None:
    rows = scored(30)
    files = rank(tmp_path, rows, "scored", output="pairs", fit={"model": "plackett_luce", "bootstrap_resamples": 20})

    pairs = rows_of(files, "pairs.jsonl")
    assert len(pairs) == 90
    scores = {response["text"]: response["score"] for row in rows for response in row["responses"]}
    for pair in pairs:
        assert pair["margin"] == pytest.approx(scores[pair["chosen"]] - scores[pair["rejected"]])
        assert pair["margin"] > 0
    assert pairs[0]["prompt"] == [{"role": "user", "content": "p0"}]
    assert [row["model"] for row in table(files, "strengths.csv")] == ["ant", "bee", "cat"]


def test_without_models_the_strengths_are_those_of_responses(tmp_path: Path) -> None:
    rows = table(rank(tmp_path, votes(3), "votes"), "strengths.csv")

    assert [row["text"] for row in rows] == [f"{kind} {prompt}" for prompt in range(3) for kind in ("good", "bad")]
    assert all(float(row["fisher_low"]) < float(row["strength"]) < float(row["fisher_high"]) for row in rows)


def test_the_same_seed_gives_the_same_files(tmp_path: Path) -> None:
    def written(name: str) -> list[bytes]:
        (tmp_path / name).mkdir()
        files = rank(tmp_path / name, scored(20), "scored")
        return [(files.path / file).read_bytes() for file in ("rankings.jsonl", "strengths.json", "summary.json")]

    assert written("one") == written("two")


def test_given_weights_decide(tmp_path: Path) -> None:
    path = write_rows(tmp_path, [{"rater": f"r{i}", "weight": float(i == 3)} for i in range(4)], "weights.jsonl")

    files = rank(tmp_path, votes(30), "votes", raters={"kind": "given", "path": path})

    # Only the contrarian counts, so nearly everything is the wrong way round.
    rankings = rows_of(files, "rankings.jsonl")
    assert sum(row["ranking"] == [[1], [0]] for row in rankings) > 20


def test_models_that_never_lose_leave_the_rankings_but_not_the_strengths(tmp_path: Path) -> None:
    rows = scored(10)
    for row in rows:
        row["responses"][0]["score"] = 100.0

    files = rank(tmp_path, rows, "scored")

    assert files.read_summary()["strongest_model"] is None
    assert len(rows_of(files, "rankings.jsonl")) == 10
    report = files.report_path.read_text(encoding="utf-8")
    assert "Strengths of models were left out." in report
    assert "never lost to or tied with any other" in report


def test_a_missing_agreement_library_is_said_and_the_rest_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agreement, "alpha_of_counts", None)

    summary = rank(tmp_path, votes(10), "votes").read_summary()

    assert summary["agreement"] is None
    assert "pip install krippendorff" in str(summary["notes"])
    assert summary["written_rows"]


def test_skipped_rows_are_counted_and_shown(tmp_path: Path) -> None:
    rows = [*votes(5), {"prompt": "p", "responses": ["only"]}]

    files = rank(tmp_path, rows, "votes", data={"on_bad_row": "skip"})

    assert files.read_summary()["skipped_rows"] == 1
    report = files.report_path.read_text(encoding="utf-8")
    assert "1 bad rows were skipped." in report
    assert "row 5: field &#39;responses&#39; is [&#39;only&#39;]" in report


TIE = {"model_a": "ant", "model_b": "bee", "winner": "tie"}
SPLIT = {"prompt": "p", "responses": ["a", "b"], "votes": [{"rater": "x", "choice": 0}, {"rater": "y", "choice": 1}]}


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([TIE, TIE], ["data.format.kind=battles"], "every comparison is a tie"),
        ([TIE | {"winner": "a"}] * 3, ["data.format.kind=battles"], "'ant' never lost to or tied with any other"),
        (
            [TIE, {"model_a": "cat", "model_b": "dog", "winner": "tie"}, TIE | {"winner": "b"}],
            ["data.format.kind=battles"],
            "2 parts that never meet, such as {'ant', 'bee'} and {'cat', 'dog'}",
        ),
        ([TIE | {"winner": "c"}], ["data.format.kind=battles"], "field 'winner' is 'c'"),
        ([SPLIT], ["data.format.kind=votes", "raters.kind=equal"], "on every prompt (1) all responses tie"),
        ([SPLIT], ["data.format.kind=votes", "raters.kind=given", "raters.path=w.jsonl"], "rater 'zoe' judged nothing"),
        ([SPLIT], ["data.format.kind=votes", "data.format.rater_field=judge"], "field 'judge' is missing"),
        ([SPLIT], ["data.format.kind=scored"], "is missing"),
        ([SPLIT], ["data.format.kind=voted"], "data.format.kind"),
        ([SPLIT], ["data.format.kind=votes", "fit.modle=plackett_luce"], "fit.modle"),
    ],
)
def test_a_users_mistake_is_one_line_and_leaves_no_folder(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    rows: list[dict[str, Any]],
    options: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path, rows)
    write_rows(tmp_path, [{"rater": name, "weight": 1} for name in ("x", "y", "zoe")], "w.jsonl")
    Path("c.yaml").write_text("run_dir: run\ndata: {train: rows.jsonl, format: {kind: votes}}\n", encoding="utf-8")

    assert cli.main(["rankings", "c.yaml", *options]) == 2

    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not Path("run").exists()


def test_a_log_of_unlinked_models_is_fitted_with_a_prior(tmp_path: Path) -> None:
    files = rank(tmp_path, [TIE | {"winner": "a"}] * 3, "battles", fit={"prior_std": 1.0, "bootstrap_resamples": 20})

    best, other = table(files, "strengths.csv")
    assert 0 < float(best["strength"]) < 2
    assert float(other["strength"]) == pytest.approx(-float(best["strength"]))
    assert "Gaussian prior of standard deviation 1" in files.report_path.read_text(encoding="utf-8")


def test_too_few_games_for_a_bootstrap_are_said(tmp_path: Path) -> None:
    rows = [TIE | {"winner": "a"}] * 9 + [TIE | {"winner": "b"}]

    files = rank(tmp_path, rows, "battles", fit={"bootstrap_resamples": 50})

    assert table(files, "strengths.csv")[0]["bootstrap_low"] == ""
    assert "bootstrap resamples had no finite fit" in files.report_path.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", ["configs/tiny/rankings.yaml", "configs/rankings/alpaca-eval.yaml"])
def test_the_example_configs_are_valid(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    root = Path(__file__).parents[2]

    assert cli.main(["rankings", str(root / path), "--dry-run"]) == 0
    assert "bootstrap_resamples" in capsys.readouterr().out


def test_no_model_library_is_loaded_to_aggregate() -> None:
    imports = "import sys, reward.rankings.outcome, reward.rankings.reading"
    code = f"{imports}; print({{'torch', 'transformers'}} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.strip() == "set()"


def test_csv_has_a_header_and_empty_cells_for_what_is_unknown() -> None:
    assert to_csv([{"a": 1, "b": None}, {"a": "x,y", "b": 0.5}]) == 'a,b\n1,\n"x,y",0.5\n'
