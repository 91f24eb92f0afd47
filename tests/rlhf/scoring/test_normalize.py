"""`rlhf normalize-reward`: a reward model without a scale gets one, and PPO then takes it."""

import json

import numpy as np
import pytest

from policies.config import FullTuning, LoraTuning, ModelConfig
from reward.composite import build_reward
from reward.config import ModelSource
from reward.interface import RewardRequest
from reward.model import RewardModel
from reward.normalization import NORMALIZER_FILE, Normalizer
from rlhf import cli

ROWS = [
    {"prompt": "the cat", "completion": " sat on the mat"},
    {"prompt": [{"role": "user", "content": "where is the bird?"}], "completion": " in the tree"},
    {"prompt": "a dog", "completion": ""},
]


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def rows(tmp_path):
    return write_rows(tmp_path / "rows.jsonl", ROWS)


@pytest.fixture(params=[FullTuning(), LoraTuning(rank=2)], ids=["full", "lora"])
def folder(request, tiny_llama_folder, tmp_path):
    """A reward model as another project leaves it: without a scale, and without our metadata."""
    config = ModelConfig(path=str(tiny_llama_folder), tuning=request.param, device="cpu")
    RewardModel.new(config, seed=0).save(tmp_path / "model", normalizer=Normalizer(0.0, 1.0, 2, "test"), metadata={})
    for name in (NORMALIZER_FILE, "rlhf_metadata.json"):
        (tmp_path / "model" / name).unlink()
    return tmp_path / "model"


def raw_scores(folder, requests):
    return build_reward([ModelSource(path=str(folder), normalization="none")], policy_tokenizer=None)(requests).scores


def requests_of_rows():
    texts = ["the cat", "user: where is the bird?\nassistant:", "a dog"]
    return [RewardRequest(prompt, row["completion"]) for prompt, row in zip(texts, ROWS, strict=True)]


def test_the_command_of_the_error_makes_the_model_usable(folder, rows, capsys):
    with pytest.raises(ValueError, match="has no reward_normalizer") as refused:
        build_reward([ModelSource(path=str(folder))], policy_tokenizer=None)
    command = str(refused.value).split("`")[1].replace("ROWS.jsonl", rows)

    assert cli.main(command.split()[1:]) == 0

    raw = raw_scores(folder, requests_of_rows())
    scores = build_reward([ModelSource(path=str(folder))], policy_tokenizer=None)(requests_of_rows()).scores
    np.testing.assert_allclose(scores, (raw - raw.mean()) / raw.std(), rtol=1e-4, atol=1e-5)
    assert Normalizer.load(folder).source == f"data.normalize={rows}"
    assert "3 responses" in capsys.readouterr().out


def test_a_copy_leaves_the_original_as_it_was(folder, rows, tmp_path):
    before = {path: path.read_bytes() for path in folder.iterdir()}

    copy = tmp_path / "copy"
    assert cli.main(["normalize-reward", f"model.path={folder}", f"data.normalize={rows}", f"run_dir={copy}"]) == 0

    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    np.testing.assert_allclose(raw_scores(copy, requests_of_rows()), raw_scores(folder, requests_of_rows()), rtol=1e-5)
    assert Normalizer.load(copy).count == 3


def run(folder, rows, *words):
    return cli.main(["normalize-reward", f"model.path={folder}", f"data.normalize={rows}", *words])


def error_line(capsys):
    return capsys.readouterr().err.splitlines()[-1]


def test_a_scale_is_replaced_only_when_asked(folder, rows, capsys):
    Normalizer(5.0, 2.0, 9, "earlier").save(folder)

    assert run(folder, rows) == 2
    assert "has a scale already, from earlier" in error_line(capsys)
    assert Normalizer.load(folder).mean == 5.0
    assert run(folder, rows, "replace=true") == 0
    assert Normalizer.load(folder).count == 3


@pytest.mark.parametrize("tuning", [LoraTuning(rank=2)])
def test_a_model_of_responses_needs_no_prompts(tiny_llama_folder, tmp_path, tuning):
    config = ModelConfig(path=str(tiny_llama_folder), tuning=tuning, device="cpu")
    RewardModel.new(config, seed=0).save(tmp_path / "model", normalizer=Normalizer(0.0, 1.0, 2, "x"), metadata={})
    rows = write_rows(tmp_path / "r.jsonl", [{"completion": row["completion"]} for row in ROWS])

    assert run(tmp_path / "model", rows, "replace=true", "model.reads=response") == 0
    assert run(tmp_path / "model", rows, "replace=true") == 2


def test_what_cannot_work_is_refused_before_the_model_is_loaded(rows, tmp_path, capsys):
    assert run("owner/name", rows) == 2
    assert "model.path='owner/name' is no folder of yours; name one for a copy" in error_line(capsys)
    assert run(tmp_path / "nothing", rows) == 2
    assert "model.path" in error_line(capsys)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    assert run("owner/name", rows, f"run_dir={tmp_path / 'full'}") == 2
    assert "is not empty" in error_line(capsys)


def test_bad_rows_are_named_or_counted(folder, tmp_path, capsys):
    rows = write_rows(tmp_path / "bad.jsonl", [*ROWS, {"prompt": "no completion"}])

    assert run(folder, rows) == 2
    assert "row 3: field 'completion' is missing" in error_line(capsys)
    assert run(folder, rows, "data.on_bad_row=skip") == 0
    output = capsys.readouterr().out
    assert "3 responses" in output
    assert "1 skipped" in output
