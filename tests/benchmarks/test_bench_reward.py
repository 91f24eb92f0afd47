"""What the reward benchmark measures, and what it says where it cannot; the measuring itself is no test."""

import json
import sys

import pytest
from transformers import AutoTokenizer

from tests.benchmarks import bench_kwise, bench_reward
from tests.benchmarks.reward_workload import CASES, write_model, write_rows


@pytest.fixture
def options(monkeypatch):
    small = ["--hidden", "64", "--layers", "1", "--vocabulary", "66", "--prompt-tokens", "5", "--response-tokens", "40"]
    monkeypatch.setattr(sys, "argv", ["bench_reward", *small, "--steps", "2", "--warmup", "1"])
    return bench_reward._options()


def test_both_sides_take_as_many_pairs_a_step():
    assert {case.name: case.pairs_per_step for case in CASES} == {
        "k2_fixed_length": 16,
        "k2_varied_length": 16,
        "k6": 30,
    }


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_responses_that_rank_higher_have_more_words_of_the_upper_half(case, options, tmp_path):
    write_rows(tmp_path / "rows.jsonl", case, options)
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    upper = [[_share_of_upper_half(response) for response in row["responses"]] for row in rows]

    assert len(rows) == 3 * case.prompts_per_step
    assert all(len(row["prompt"].split()) == 5 for row in rows)
    assert sum(shares[0] for shares in upper) / len(rows) == pytest.approx(0.8, abs=0.1)
    assert sum(shares[-1] for shares in upper) / len(rows) == pytest.approx(0.2, abs=0.1)
    lengths = {len(response.split()) for row in rows for response in row["responses"]}
    assert (min(lengths) >= 10 and len(lengths) > 10) if case.is_varied else lengths == {40}


def _share_of_upper_half(response):
    words = [int(word.removeprefix("w")) for word in response.split()]
    return sum(word >= 32 for word in words) / len(words)


def test_the_tokenizer_reads_a_word_as_its_number(options, tmp_path):
    write_model(tmp_path, options)
    assert AutoTokenizer.from_pretrained(tmp_path)("w3 w61<eos>")["input_ids"][:2] == [3, 61]


def test_a_missing_peer_is_one_line(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "argv", ["bench_reward", "--peer", str(tmp_path / "none.py")])
    assert bench_reward.main() == 2
    assert capsys.readouterr().err == (
        f"error: no script at {tmp_path}/none.py; give it with --peer or RLHF_TRL_REWARD_BASELINE\n"
    )


def test_a_ranking_as_pairs_has_every_pair_that_is_no_tie():
    row = {"prompt": "p", "responses": ["a", "b", "c"], "ranking": [[2], [0, 1]]}
    pairs = bench_kwise._pairs_of(row)
    assert [pair["responses"] for pair in pairs] == [["c", "a"], ["c", "b"]]
    assert {(pair["prompt"], *pair["ranking"]) for pair in pairs} == {("p", 0, 1)}
