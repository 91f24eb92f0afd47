"""What bad input gets from `rlhf ppo`: one line with field, value and remedy, exit code 2, and nothing overwritten."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from rlhf import cli
from rlhf.config import PpoConfig
from rlhf.runtime.run_folder import RunFiles
from tests.tiny_models import build_model
from tests.tiny_ppo import STORIES, merged, ppo_config, ppo_settings, run_ppo, write_rows, write_yaml


def error_lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Lines of stderr, less the progress bars that the command's own process switches off."""
    lines = capsys.readouterr().err.replace("\r", "\n").splitlines()
    return [line for line in lines if line.strip() and not line.startswith(("Loading weights", "Writing model shards"))]


def without_token(folder: Path, tokenizer: PreTrainedTokenizerBase, token: str) -> str:
    """A model folder whose tokenizer lacks a special token."""
    build_model("llama", 300).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    file = folder / "tokenizer_config.json"
    settings = json.loads(file.read_text(encoding="utf-8"))
    settings.pop(token)
    file.write_text(json.dumps(settings), encoding="utf-8")
    (folder / "special_tokens_map.json").unlink(missing_ok=True)
    return str(folder)


LONG_PROMPT = "the cat sat on the mat and " * 4
Change = Callable[[Path], dict[str, Any]]
BAD_INPUT: dict[str, tuple[Change, str]] = {
    "misspelt key": (lambda _: {"algorithm": {"epoch": 3}}, r"algorithm\.epoch: .*epochs"),
    "wrong type": (lambda _: {"steps": "many"}, r"steps: .*many"),
    "missing file": (lambda p: {"data": {"train": str(p / "no.jsonl")}}, r"data\.train=.*no\.jsonl: no such file"),
    "empty dataset": (
        lambda p: {"data": {"train": write_rows(p / "empty.jsonl", [])}},
        r"data\.train=.*empty\.jsonl: no rows",
    ),
    "row without prompt": (
        lambda p: {"data": {"train": write_rows(p / "r.jsonl", [{"prompt": "a"}, {"text": "b"}])}},
        r"data\.train=.*r\.jsonl, row 1: field 'prompt' is missing .*on_bad_row=skip",
    ),
    "bad pretraining text": (
        lambda p: {
            "data": {"pretrain": write_rows(p / "t.jsonl", [{"txt": "a"}])},
            "algorithm": {"ptx": {"sequence_tokens": 8}},
        },
        r"data\.pretrain=.*t\.jsonl, row 0: text is None",
    ),
    "prompt longer than the limit": (
        lambda p: {
            "data": {"train": write_rows(p / "l.jsonl", [{"prompt": LONG_PROMPT}])},
            "rollout": {"max_prompt_tokens": 5},
        },
        r"data\.train=.*row 0: field 'prompt' has \d+ tokens, at most max_prompt_tokens=5",
    ),
    "prompt longer than the context": (
        lambda p: {
            "data": {"train": write_rows(p / "l.jsonl", [{"prompt": "a"}, {"prompt": LONG_PROMPT}])},
            "rollout": {"sampling": {"max_response_tokens": 40}},
        },
        r"data\.train=.*l\.jsonl: prompt '1' has \d+ tokens, at most 24 leave room .*max_response_tokens=40: .*lower",
    ),
    "no such model": (lambda p: {"model": {"path": str(p / "nothing")}}, r"model\.path='.*nothing': no such folder"),
    "no such reward model": (
        lambda p: {"reward": [{"kind": "model", "path": str(p / "nothing")}]},
        r"reward\.path='.*nothing': no such folder",
    ),
    "no such function": (
        lambda _: {"reward": [{"kind": "function", "function": "math:nothing"}]},
        r"reward\.function='math:nothing': module 'math' has no function 'nothing'",
    ),
    "nothing to start the critic from": (
        lambda _: {"critic": {"start": "reward_model"}},
        r"critic\.start=reward_model: no reward model of this run .*critic\.start=auto",
    ),
}


@pytest.mark.parametrize("name", BAD_INPUT)
def test_bad_input_is_one_line_with_field_value_and_remedy(
    tmp_path: Path, tiny_llama_folder: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    change, message = BAD_INPUT[name]
    settings = merged(ppo_settings(tmp_path, tiny_llama_folder), **change(tmp_path))
    assert cli.main(["ppo", str(write_yaml(tmp_path, settings))]) == 2
    (line,) = error_lines(capsys)
    assert line.startswith("error: ")
    # The correction can be run in the same folder.
    assert not RunFiles(tmp_path / "run").holds_run()
    assert re.search(message, line), line


@pytest.mark.parametrize("token", ["pad_token", "eos_token"])
def test_a_tokenizer_without_pad_or_eos_is_refused_and_the_remedy_works(
    tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerBase, capsys: pytest.CaptureFixture[str], token: str
) -> None:
    model = without_token(tmp_path / "model", tiny_tokenizer, token)
    path = str(write_yaml(tmp_path, ppo_settings(tmp_path, model, steps=1)))
    assert cli.main(["ppo", path]) == 2
    (line,) = error_lines(capsys)
    assert f"model.{token}" in line
    assert not RunFiles(tmp_path / "run").holds_run()
    value = getattr(tiny_tokenizer, token)
    assert cli.main(["ppo", path, f"model.{token}={value}"]) == 0


def test_a_folder_that_holds_a_run_is_refused_and_stays_as_it_was(
    tmp_path: Path, tiny_llama_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ppo_settings(tmp_path, tiny_llama_folder, steps=1)
    straight = run_ppo(PpoConfig.model_validate(settings))
    capsys.readouterr()
    before = {path: path.read_bytes() for path in straight.path.rglob("*") if path.is_file()}
    path = str(write_yaml(tmp_path, settings))
    assert cli.main(["ppo", path]) == 2
    (line,) = error_lines(capsys)
    assert line.startswith(f"error: run_dir: '{straight.path}' already holds a run")
    assert "--resume" in line
    assert cli.main(["ppo", path, "--resume", "seed=9"]) == 2
    (line,) = error_lines(capsys)
    assert "seed (was 3, now 9)" in line
    assert {path: path.read_bytes() for path in straight.path.rglob("*") if path.is_file()} == before


def test_nothing_to_resume_is_refused(
    tmp_path: Path, tiny_llama_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(write_yaml(tmp_path, ppo_settings(tmp_path, tiny_llama_folder)))
    assert cli.main(["ppo", path, "--resume"]) == 2
    (line,) = error_lines(capsys)
    assert "holds no run to resume" in line


def test_bad_rows_are_skipped_counted_and_reported(
    tmp_path: Path, tiny_llama_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    prompts = [{"prompt": "the cat"}, {"text": "no prompt"}, {"prompt": LONG_PROMPT}, {"prompt": "a dog"}]
    data = {
        "train": write_rows(tmp_path / "some.jsonl", prompts),
        "eval": write_rows(tmp_path / "held-out.jsonl", [{"prompt": 7}, {"prompt": "the bird"}]),
        "pretrain": write_rows(tmp_path / "texts.jsonl", [{"text": STORIES[0]}, {}]),
        "on_bad_row": "skip",
    }
    algorithm = {"ptx": {"sequence_tokens": 8}}
    sampling = {"sampling": {"max_response_tokens": 40}}
    changes: dict[str, Any] = {"data": data, "algorithm": algorithm, "rollout": sampling, "steps": 1}
    run = run_ppo(ppo_config(tmp_path, tiny_llama_folder, **changes))
    assert run.read_summary()["skipped_rows"] == 4
    reported = [record.getMessage() for record in caplog.records if record.getMessage().startswith("skipped ")]
    assert len(reported) == 4
    assert {row["prompt_id"] for row in run.read_samples() if row["kind"] == "fixed"} == {"1"}


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_an_impossible_placement_is_one_line_and_leaves_nothing(
    tmp_path: Path, tiny_llama_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ppo_settings(tmp_path, tiny_llama_folder, placement={"kind": "split", "rollout": {"workers": 90}})
    assert cli.main(["ppo", str(write_yaml(tmp_path, settings))]) == 2
    (line,) = error_lines(capsys)
    assert line.startswith("error: placement: 93 actors ask for 23.25 CPUs and 0 GPUs in total, the cluster has 2 CPUs")
    assert "nearest layout that fits: cpus=0.02" in line
    assert not RunFiles(tmp_path / "run").holds_run()
