"""`rlhf corpus` end to end: what is written, that it is deterministic, and how mistakes are answered."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from rlhf import cli
from rlhf.corpus.command import run
from rlhf.corpus.config import CorpusConfig
from rlhf.data import load_rows, stream_rows
from rlhf.runtime.run_folder import RunFiles

ROOT = Path(__file__).parents[3]
GOOD = "Der Hund lief weit über den Hügel. Er fand dort einen roten Ball! Wer hat ihn wohl verloren?"
PAGES = [
    f"Startseite | Impressum\n{GOOD}",
    "Alles hier ist nur { Platzhalter } und sonst nichts.",
    GOOD.upper(),
    "Zu kurz, um hier zu bleiben.",
]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def configure(tmp_path: Path, /, **changes: Any) -> CorpusConfig:
    rows = [{"text": text, "id": number} for number, text in enumerate(PAGES)]
    settings = {"run_dir": str(tmp_path / "run"), "data": {"train": write_rows(tmp_path / "pages.jsonl", rows)}}
    return CorpusConfig.model_validate(settings | changes)


def test_the_output_the_tallies_and_the_report_agree(tmp_path: Path) -> None:
    run(configure(tmp_path), resume=False)
    files = RunFiles(tmp_path / "run")
    assert load_rows(str(files.path / "corpus.jsonl.gz")) == [{"text": GOOD, "id": 0}]
    summary: dict[str, Any] = {**files.read_summary()}
    took = {rule["rule"]: rule for rule in summary["rules"] if rule["bytes_removed"]}
    assert set(took) == {"c4.terminal_punctuation", "c4.braces", "exact_duplicates", "c4.min_sentences"}
    assert took["c4.terminal_punctuation"]["documents_shortened"] == 1
    assert took["c4.terminal_punctuation"]["examples"] == [{"row": 0, "text": "Startseite | Impressum"}]
    assert took["exact_duplicates"]["examples"][0]["row"] == 2
    assert (summary["documents"], summary["kept_documents"], summary["kept_bytes"]) == (4, 1, len(GOOD.encode()))
    assert "Startseite | Impressum" in files.report_path.read_text(encoding="utf-8")


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        run(configure(tmp_path, run_dir=str(tmp_path / name)), resume=False)
    first, second = ((tmp_path / name / "corpus.jsonl.gz").read_bytes() for name in ("a", "b"))
    assert first == second
    run(configure(tmp_path, run_dir=str(tmp_path / "plain"), compress=False), resume=False)
    assert gzip.decompress(first) == (tmp_path / "plain" / "corpus.jsonl").read_bytes()


def test_a_bad_row_stops_before_a_run_exists_or_is_skipped_and_counted(tmp_path: Path) -> None:
    data = {"train": write_rows(tmp_path / "bad.jsonl", [{"text": GOOD}, {"txt": GOOD}])}
    with pytest.raises(ValueError, match=r"bad.jsonl, row 1: text is None.*on_bad_row=skip"):
        run(configure(tmp_path, data=data), resume=False)
    assert not (tmp_path / "run").exists()
    run(configure(tmp_path, data={**data, "on_bad_row": "skip"}), resume=False)
    assert RunFiles(tmp_path / "run").read_summary()["skipped_rows"] == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.jsonl", "pages.jsonl", "run"]


def test_rules_that_leave_nothing_are_an_error_that_names_the_one_that_took_most(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"the rules leave none of 4 documents .most went to c4\.min_words_per_line"):
        run(configure(tmp_path, c4={"min_words_per_line": 100, "braces": False}), resume=False)


def test_the_tiny_configuration_removes_what_was_put_in(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("datasketch", reason="needs the extra `corpus`")
    config = str(ROOT / "configs" / "tiny" / "corpus.yaml")
    assert cli.main(["corpus", config, f"run_dir={tmp_path / 'run'}"]) == 0
    summary: dict[str, Any] = {**RunFiles(tmp_path / "run").read_summary()}
    took = {rule["rule"] for rule in summary["rules"] if rule["bytes_removed"]}
    assert took >= {"c4.terminal_punctuation", "c4.line_phrases", "c4.document_phrases", "c4.braces",
                    "exact_duplicates", "near_duplicates"}  # fmt: skip
    text = "".join(row["text"] for row in load_rows(str(tmp_path / "run" / "corpus.jsonl.gz")))
    assert not any(trace in text for trace in ("cookies", "javascript", "lorem", "{", "share this page"))
    assert 0.5 < summary["kept_bytes"] / summary["bytes"] < 0.9
    assert "near_duplicates" in capsys.readouterr().out


@pytest.mark.parametrize("part", ["", "[1:3]", "[-2:]", "[25%:]", "[:75%]", "[2:1]", "[:50]"])
def test_streamed_rows_are_the_loaded_ones(tmp_path: Path, part: str) -> None:
    source = write_rows(tmp_path / "rows.jsonl", [{"n": number} for number in range(5)]) + part
    if part == "[2:1]":
        with pytest.raises(ValueError, match="no rows"):
            list(stream_rows(source))
    else:
        assert list(stream_rows(source)) == load_rows(source)


def test_a_broken_line_in_the_middle_of_a_stream_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"n": 1}\n{"n": \n')
    rows = stream_rows(str(path))
    assert next(rows) == {"n": 1}
    with pytest.raises(ValueError, match=r"rows.jsonl: cannot be read as jsonl .line 2 is not valid JSON"):
        next(rows)
