"""`rlhf tokenizers`: measures by hand, a fair trial, what a run leaves behind, and mistakes."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from rlhf import cli
from rlhf.runtime.run_folder import RunFiles
from rlhf.tokenizer_comparison.command import run
from rlhf.tokenizer_comparison.config import TokenizersConfig
from rlhf.tokenizer_comparison.measures import measure_tokenizer
from rlhf.tokenizer_comparison.trial import cut

ROOT = Path(__file__).parents[3]
TEXTS = [f"the {animal} took a {thing} to the {place}." for animal in ("cat", "dog", "owl", "fox")
         for thing in ("ball", "hat", "map") for place in ("hill", "mill", "lake")]  # fmt: skip
TRIAL = {
    "architecture": {"hidden_size": 16, "layers": 1, "heads": 2, "context_tokens": 64},
    "piece_bytes": 40,
    "pieces_per_step": 4,
    "steps": 3,
}


def words_only() -> PreTrainedTokenizerFast:
    """Three words, split at spaces that it forgets; all else is unknown."""
    backend = Tokenizer(models.WordLevel({"<unk>": 0, "the": 1, "cat": 2, "ran": 3, "</s>": 4}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="</s>", pad_token="<unk>")


def configure(tmp_path: Path, /, **changes: Any) -> TokenizersConfig:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    settings = {
        "run_dir": str(tmp_path / "run"),
        "data": {"train": f"{path}[:30]", "eval": f"{path}[30:]"},
        "tokenizers": [{"kind": "bpe", "vocabulary_size": 300}, {"kind": "unigram", "vocabulary_size": 300}],
        "trial": TRIAL,
    }
    return TokenizersConfig.model_validate(settings | changes)


def test_measures_by_hand() -> None:
    measured = measure_tokenizer(words_only(), ["the cat ran", "the dog  ran off"])
    # Seven words are seven tokens; "dog" and "off" are unknown; 11 + 16 bytes; only the first text comes back.
    assert (measured.fertility, measured.unknown_rate) == (1.0, pytest.approx(2 / 7))
    assert measured.bytes_per_token == pytest.approx(27 / 7)
    assert (measured.vocabulary, measured.used, measured.round_trip_rate) == (5, 4, 0.5)


def test_pieces_are_cut_before_words_and_join_to_the_documents() -> None:
    texts = ["aa bb cc dd", "one  two\nthree ", "ö" * 9, " \n"]
    pieces = cut(texts, 8)
    assert pieces[:2] == ["aa bb cc", " dd"]
    assert "".join(pieces) == "".join(texts)
    assert max(len(piece.encode()) for piece in pieces) <= 8


def test_a_run_trains_every_tokenizer_on_the_same_text_and_leaves_them_behind(tmp_path: Path) -> None:
    run(configure(tmp_path), resume=False)
    files = RunFiles(tmp_path / "run")
    rows: dict[str, Any] = {**files.read_summary()}["tokenizers"]  # pyright: ignore[reportAssignmentType]
    assert list(rows) == ["bpe-300", "unigram-300"]
    for name, row in rows.items():
        saved = AutoTokenizer.from_pretrained(files.path / "tokenizers" / name)
        assert (len(saved), row["round_trip_rate"], row["unknown_rate"]) == (row["vocabulary"], 1.0, 0.0)
        # A model that has learned nothing yet needs about log2(V) bits for each token, end of sequence included.
        tokens_per_byte = row["bits_per_byte"] * math.log(2) / row["loss"]
        assert tokens_per_byte > 1 / row["bytes_per_token"]
        assert row["loss"] == pytest.approx(math.log(row["vocabulary"]), rel=0.1)
    assert rows["bpe-300"]["train_tokens"] != rows["unigram-300"]["train_tokens"]
    assert "bpe-300" in files.report_path.read_text(encoding="utf-8")


def test_the_numbers_are_those_of_the_seed_and_do_not_depend_on_the_others_compared(tmp_path: Path) -> None:
    alone = [{"kind": "wordpiece", "vocabulary_size": 530}]
    pair = [{"kind": "bpe", "vocabulary_size": 300}, *alone]
    run(configure(tmp_path, run_dir=str(tmp_path / "both"), tokenizers=pair), resume=False)
    run(configure(tmp_path, run_dir=str(tmp_path / "one"), tokenizers=alone), resume=False)
    both, one = ({**RunFiles(tmp_path / name).read_summary()}["tokenizers"] for name in ("both", "one"))
    assert one == {"wordpiece-530": both["wordpiece-530"]}  # pyright: ignore[reportIndexIssue]


def test_a_tokenizer_that_loses_text_is_said_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words_only().save_pretrained(tmp_path / "words")
    run(configure(tmp_path, tokenizers=[{"path": str(tmp_path / "words"), "kind": "path"}], trial=None), resume=False)
    assert "words does not give back 100.0% of the documents exactly" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(("changes", "message"), [
    ({"tokenizers": [{"kind": "wordpiece", "vocabulary_size": 300}]}, "wordpiece-300: vocabulary_size=300"),
    ({"tokenizers": [{"kind": "path", "path": "nowhere/at-all"}]}, "nowhere/at-all': no folder"),
])  # fmt: skip
def test_what_cannot_be_compared_is_named_before_a_run_exists(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        run(configure(tmp_path, **changes), resume=False)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("changes", "message"), [
    ({"tokenizers": [{"kind": "bpe", "vocabulary_size": 300}] * 2}, "bpe-300 stands there twice"),
    ({"trial": TRIAL | {"piece_bytes": 63}}, "piece_bytes=63 leaves no room"),
])  # fmt: skip
def test_a_configuration_that_makes_no_sense_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        configure(tmp_path, **changes)


@pytest.mark.slow
def test_the_tiny_configuration_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(ROOT / "configs" / "tiny" / "tokenizers.yaml")
    assert cli.main(["tokenizers", path, f"run_dir={tmp_path / 'run'}", "trial.steps=20"]) == 0
    assert "has the lowest loss per byte" in capsys.readouterr().out
