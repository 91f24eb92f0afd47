"""PPO on several kinds of reward at once, and what its start refuses about them."""

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from policies.config import FullTuning, ModelConfig
from policies.tokenization import train_tokenizer
from reward.model import RewardModel
from reward.normalization import NORMALIZER_FILE, fit_command
from rlhf import cli
from rlhf.trainers import ppo
from tests.reward.scripted_endpoint import Answer, Endpoint, serve_script
from tests.tiny_models import write_llama
from tests.tiny_ppo import (
    REWARD_SCALE,
    metrics_of,
    ppo_config,
    ppo_settings,
    run_ppo,
    write_reward_adapter,
    write_rows,
    write_yaml,
)

WEIGHTS = {"proxy": 1.0, "stranger": 0.5, "brevity": 0.1, "remote": -0.25, "gold": 0.0}


@pytest.fixture(autouse=True)
def _token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLHF_REWARD_TOKEN", "t0ken")


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    with serve_script(Endpoint()) as running:
        yield running


@pytest.fixture(scope="module")
def folders(tiny_llama_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A reward model on the policy's base, and one on another base with another tokenizer."""
    place = tmp_path_factory.mktemp("rewards")
    write_llama(place / "base", train_tokenizer(["zebra quartz vox and jug"], vocabulary_size=280))
    other = RewardModel.new(ModelConfig(path=str(place / "base"), tuning=FullTuning(), device="cpu"), seed=3)
    other.save(place / "stranger", normalizer=REWARD_SCALE, metadata={})
    return {"proxy": write_reward_adapter(place / "proxy", tiny_llama_folder), "stranger": place / "stranger"}


def sources(folders: dict[str, Path], endpoint: Endpoint) -> list[dict[str, Any]]:
    kinds: dict[str, dict[str, Any]] = {
        "proxy": {"kind": "model", "path": str(folders["proxy"]), "device": "cpu"},
        "stranger": {"kind": "model", "path": str(folders["stranger"]), "device": "cpu"},
        "brevity": {"kind": "length", "maximum_words": 2},
        "remote": {
            "kind": "http",
            "url": endpoint.url,
            "responses_per_call": 1,
            "retries": 0,
            "row_fields": ["answer"],
        },
        "gold": {"kind": "function", "function": "tests.system.scripted_rewards:vowels"},
    }
    return [{**kind, "name": name, "weight": WEIGHTS[name]} for name, kind in kinds.items()]


def test_several_models_rules_functions_and_an_endpoint_mix_and_are_logged_by_name(
    tmp_path: Path, tiny_llama_folder: Path, folders: dict[str, Path], endpoint: Endpoint
) -> None:
    run = run_ppo(ppo_config(tmp_path, tiny_llama_folder, reward=sources(folders, endpoint), steps=2))

    for row in metrics_of(run):
        mixed = sum(weight * row[f"reward/{name}"] for name, weight in WEIGHTS.items())
        assert row["objective/scores"] == pytest.approx(mixed, rel=1e-4, abs=1e-5)
        assert [row[f"reward/{name}/failed"] for name in WEIGHTS] == [0] * len(WEIGHTS)
        assert row["rollout/dropped"] == 0
    assert len({row["reward/stranger"] for row in metrics_of(run)}) == 2
    assert {tuple(call["requests"][0]) for call in endpoint.calls if call["requests"]} == {
        ("prompt", "response", "fields")
    }


def test_what_the_endpoint_cannot_score_is_dropped_counted_and_said(
    tmp_path: Path, tiny_llama_folder: Path, endpoint: Endpoint, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{"prompt": "the cat", "answer": "bad"}, {"prompt": "a dog", "answer": "good"}]
    data = {"train": write_rows(tmp_path / "some.jsonl", rows), "eval": None, "pretrain_eval": None}
    scores = {"good": Answer(body={"scores": [3.0]}), "bad": Answer(500)}
    endpoint.decide = lambda call: (
        scores[call["requests"][0]["fields"]["answer"]] if call["requests"] else Answer(body={"scores": []})
    )
    remote = {"kind": "http", "url": endpoint.url, "responses_per_call": 1, "retries": 0, "row_fields": ["answer"]}

    (row,) = metrics_of(run_ppo(ppo_config(tmp_path, tiny_llama_folder, reward=[remote], data=data, steps=1)))

    assert row["reward/http/failed"] == row["rollout/dropped"] == 2
    # A failure as 0 would make it 1.5.
    assert row["objective/scores"] == row["reward/http"] == 3.0
    assert "2 of 4 responses got no score: http: HTTP 500 Internal Server Error (1 attempt) (2)" in caplog.text


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("kind", ["model", "ensemble"])
def test_a_model_without_a_scale_is_refused_before_any_role_starts_with_the_command_that_helps(
    tmp_path: Path,
    tiny_llama_folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    folder = write_reward_adapter(tmp_path / "proxy", tiny_llama_folder)
    (folder / NORMALIZER_FILE).unlink()
    monkeypatch.delattr(ppo, "open_roles")
    model = {"path": str(folder), "device": "cpu"}
    reward = {"kind": "model", **model} if kind == "model" else {"kind": "ensemble", "members": [model, model]}
    path = write_yaml(tmp_path, ppo_settings(tmp_path, tiny_llama_folder, reward=[reward], steps=1))

    assert cli.main(["ppo", str(path)]) == 2
    line = error_line(capsys)
    assert f"has no {NORMALIZER_FILE}" in line
    assert f"`{fit_command(folder)}`" in line

    monkeypatch.undo()
    monkeypatch.setenv("RLHF_REWARD_TOKEN", "t0ken")
    rows = write_rows(tmp_path / "answers.jsonl", [{"prompt": "a", "completion": text} for text in ("b", "c d", "")])
    assert cli.main(fit_command(folder).replace("ROWS.jsonl", rows).split()[1:]) == 0
    assert cli.main(["ppo", str(path)]) == 0


def test_an_endpoint_that_is_not_there_stops_the_start_in_one_line(
    tmp_path: Path, tiny_llama_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/score"
    reward = [{"kind": "http", "url": url, "retries": 0}]
    path = write_yaml(tmp_path, ppo_settings(tmp_path, tiny_llama_folder, reward=reward))

    assert cli.main(["ppo", str(path)]) == 1

    line = error_line(capsys)
    assert line.startswith(f"error: reward.url='{url}': ")
    assert "start it (`rlhf serve-reward`)" in line


def test_a_length_penalty_counts_the_policys_tokens(tmp_path: Path, tiny_llama_folder: Path) -> None:
    rule = {"kind": "length_penalty", "free_tokens": 2, "maximum_tokens": 6}

    run = run_ppo(ppo_config(tmp_path, tiny_llama_folder, reward=[rule], steps=1))

    # Nearly every answer of a random model fills the 8 tokens that it may have, which costs the whole penalty.
    (row,) = metrics_of(run)
    assert row["rollout/response_length_mean"] > 6
    assert -1.0 <= row["reward/length_penalty"] < -0.7
    assert row["objective/scores"] == row["reward/length_penalty"]


@pytest.mark.parametrize(("rule", "cut_off_score"), [("penalty", 1.0 - 3.0), ("replace", 3.0)])
def test_a_response_that_was_cut_off_is_scored_by_the_rule_for_it(
    tmp_path: Path, tiny_llama_folder: Path, rule: str, cut_off_score: float
) -> None:
    one = {"kind": "regex", "pattern": ""}
    algorithm = {"missing_eos": {"rule": rule, "value": 3.0}}

    run = run_ppo(ppo_config(tmp_path, tiny_llama_folder, reward=[one], algorithm=algorithm, steps=1))

    (row,) = metrics_of(run)
    cut_off = row["rollout/truncated_rate"]
    assert cut_off > 0
    assert row["reward/regex"] == 1.0
    assert row["objective/scores"] == pytest.approx((1 - cut_off) * 1.0 + cut_off * cut_off_score)
