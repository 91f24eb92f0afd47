"""The win rate and its interval, and whole evaluations of tiny models."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from policies.backbone import Backbone
from policies.config import ModelConfig
from policies.loading import load_backbone
from policies.tokenization import train_tokenizer
from rlhf.config import EvalConfig
from rlhf.evaluation import models
from rlhf.evaluation.command import run
from rlhf.evaluation.endpoint_judge import REPLIES_FILE
from rlhf.evaluation.win_rates import score_gain, win_rate
from rlhf.reports.command import run as report
from rlhf.reports.config import ReportConfig
from rlhf.runtime.run_folder import RunFiles
from tests.reward.scripted_endpoint import Answer, Endpoint, serve_script
from tests.tiny_models import build_model
from tests.tiny_ppo import PROMPTS, STORIES, merged, ppo_config, run_ppo, write_data, write_rows


def _ids(count: int) -> list[str]:
    return [str(number) for number in range(count)]


def test_ties_count_half_and_lost_prompts_are_left_out() -> None:
    candidate = np.array([1.0, 2.0, 0.0, np.nan, 5.0], np.float32)
    baseline = np.array([0.0, 2.0, 1.0, 9.0, 4.0], np.float32)
    assert win_rate(candidate, baseline, _ids(5), resamples=200, seed=0).mean == pytest.approx((1 + 0.5 + 0 + 1) / 4)
    assert score_gain(candidate, baseline, _ids(5), resamples=200, seed=0).mean == pytest.approx((1 + 0 - 1 + 1) / 4)


def test_every_prompt_counts_once_however_many_answers_it_has() -> None:
    candidate = np.array([1.0, 1.0, 1.0, 0.0], np.float32)
    baseline = np.array([0.0, 0.0, 0.0, 1.0], np.float32)
    assert win_rate(candidate, baseline, ["a", "a", "a", "b"], resamples=200, seed=0).mean == pytest.approx(0.5)


def test_answers_to_one_prompt_do_not_narrow_the_interval() -> None:
    rng = np.random.default_rng(0)
    gains = rng.normal(size=20).astype(np.float32)
    once = score_gain(gains, np.zeros(20, np.float32), _ids(20), resamples=2000, seed=0)
    repeated = score_gain(
        np.repeat(gains, 9), np.zeros(180, np.float32), [str(n // 9) for n in range(180)], resamples=2000, seed=0
    )
    assert (repeated.low, repeated.high) == pytest.approx((once.low, once.high), abs=1e-6)


def test_the_interval_covers_the_truth_at_about_its_nominal_rate() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        candidate, baseline = (rng.random(100) < 0.7).astype(np.float32), np.full(100, 0.5, np.float32)
        result = win_rate(candidate, baseline, _ids(100), resamples=400, seed=trial)
        assert result.low <= result.mean <= result.high
        covered += result.low <= 0.7 <= result.high
    assert 0.88 <= covered / 200 <= 0.99


def test_no_common_prompt_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one"):
        win_rate(np.array([np.nan], np.float32), np.array([1.0], np.float32), ["a"], resamples=100, seed=0)


# --- whole evaluations ------------------------------------------------------------------------------------------------


def eval_settings(folder: Path, model: Path, /, **changes: Any) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "run_dir": str(folder / "run"),
        "model": {"path": str(model), "device": "cpu"},
        "baseline": {"path": str(model), "device": "cpu"},
        "data": {key: value for key, value in write_data(folder).items() if key != "train"},
        "reward": [{"kind": "length", "maximum_words": 2}, {"kind": "regex", "pattern": "e", "weight": 0.0}],
        "sampling": {"max_response_tokens": 8},
        "bootstrap_resamples": 200,
        "tracking": {"wandb": "off"},
    }
    return merged(settings, **changes)


def evaluate(settings: dict[str, Any]) -> RunFiles:
    run(EvalConfig.model_validate(settings), resume=False)
    return RunFiles(settings["run_dir"])


@pytest.fixture(scope="module")
def trained(tiny_llama_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy that one PPO step has moved: an adapter on the tiny Llama."""
    folder = tmp_path_factory.mktemp("trained")
    return run_ppo(ppo_config(folder, tiny_llama_folder, steps=1, sample_prompts=0)).path / "model"


def test_a_model_against_itself_is_a_draw_without_distance(tmp_path: Path, tiny_llama_folder: Path) -> None:
    summary: Any = evaluate(eval_settings(tmp_path, tiny_llama_folder)).read_summary()
    assert [summary[key] for key in ("win_rate", "win_rate_low", "win_rate_high", "gain")] == [0.5, 0.5, 0.5, 0.0]
    assert summary["kl"] == pytest.approx(0.0, abs=1e-4)
    assert summary["candidate"] == summary["baseline"]
    assert summary["judges"].keys() == {"length", "regex"}
    assert summary["prompts"] == 2


def test_numbers_of_an_evaluation_are_those_worked_out_apart(
    tmp_path: Path, tiny_llama_folder: Path, trained: Path
) -> None:
    held_out = write_rows(tmp_path / "many.jsonl", [{"prompt": text} for text in PROMPTS])
    model = {"path": str(trained), "device": "cpu"}
    changes: dict[str, Any] = {"model": model, "data": {"eval": held_out, "train": held_out}, "responses_per_prompt": 2}
    result = evaluate(eval_settings(tmp_path, tiny_llama_folder, **changes))
    summary: Any = result.read_summary()
    rows: Any = result.read_samples()
    assert len(rows) == 2 * len(PROMPTS)
    assert summary["prompts_seen_in_training"] == len(PROMPTS)
    # The scores are the rule's, of the texts that are shown.
    for row in rows:
        for side in ("", "baseline_"):
            assert row[f"{side}score"] == -max(0, len(row[f"{side}response"].split()) - 2)
    mine, theirs = (np.array([row[key] for row in rows]) for key in ("score", "baseline_score"))
    assert summary["candidate"]["score"] == pytest.approx(mine.mean())
    assert summary["gain"] == pytest.approx((mine - theirs).mean())
    assert summary["win_rate"] == pytest.approx(((mine > theirs) + 0.5 * (mine == theirs)).mean())
    assert summary["win_rate_low"] <= summary["win_rate"] <= summary["win_rate_high"]

    # KL and perplexity by a plain forward pass of transformers and PEFT.
    base = AutoModelForCausalLM.from_pretrained(tiny_llama_folder)
    tuned = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_llama_folder), str(trained))
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama_folder)

    def nll(model: Any, text: str) -> float:
        ids = torch.tensor([[*tokenizer(text)["input_ids"], tokenizer.eos_token_id]])
        with torch.no_grad():
            logprobs = torch.log_softmax(model(ids).logits[0, :-1], dim=-1)
        return float(-logprobs[torch.arange(ids.shape[1] - 1), ids[0, 1:]].sum())

    counts = [len(tokenizer(text)["input_ids"]) for text in STORIES[:2]]
    for side, model in (("candidate", tuned), ("baseline", base)):
        expected = math.exp(sum(nll(model, text) for text in STORIES[:2]) / sum(counts))
        assert summary[side]["pretrain_ppl"] == pytest.approx(expected, rel=1e-4)
    assert summary["kl"] > 0.01


def test_the_same_evaluation_twice_gives_the_same_numbers(
    tmp_path: Path, tiny_llama_folder: Path, trained: Path
) -> None:
    settings = eval_settings(tmp_path, tiny_llama_folder, model={"path": str(trained), "device": "cpu"})
    first, second = evaluate(settings), evaluate(merged(settings, run_dir=str(tmp_path / "again")))
    assert first.read_samples() == second.read_samples()
    summaries: list[Any] = [result.read_summary() for result in (first, second)]
    assert [summary.pop("seconds") > 0 for summary in summaries] == [True, True]
    assert summaries[0] == summaries[1]


def test_models_with_different_tokenizers_are_not_compared(
    tmp_path: Path, tiny_llama_folder: Path, tiny_tokenizer: PreTrainedTokenizerBase
) -> None:
    other = tmp_path / "other"
    build_model("llama", 300).save_pretrained(other)
    train_tokenizer(["quite another corpus of words", *STORIES], vocabulary_size=290).save_pretrained(other)
    settings = eval_settings(tmp_path, tiny_llama_folder, baseline={"path": str(other), "device": "cpu"})
    with pytest.raises(ValueError, match=r"^baseline\.path=.*other' has another tokenizer than model\.path=.*: name a"):
        evaluate(settings)
    assert not RunFiles(settings["run_dir"]).holds_run()
    # The same tokenizer under another name is the same.
    tiny_tokenizer.save_pretrained(other)
    evaluate(settings)


def test_a_failed_evaluation_leaves_its_folder_free_and_a_finished_one_is_kept(
    tmp_path: Path, tiny_llama_folder: Path
) -> None:
    settings = eval_settings(tmp_path, tiny_llama_folder)
    with pytest.raises(ValueError, match="no such folder"):
        evaluate(merged(settings, baseline={"path": str(tmp_path / "absent")}))
    result = evaluate(settings)
    before = result.summary_path.read_bytes()
    with pytest.raises(ValueError, match="already holds a run"):
        evaluate(settings)
    assert result.summary_path.read_bytes() == before


# --- everything at once ---------------------------------------------------------------------------------------------


def prefers_fewer_words(prompts: list[str], answers_a: list[str], answers_b: list[str]) -> list[str | None]:
    """A judge that compares; it keeps silent on the second prompt."""
    found: list[str | None] = []
    for prompt, a, b in zip(prompts, answers_a, answers_b, strict=True):
        difference = len(a.split()) - len(b.split())
        choice = "tie" if not difference else "A" if difference < 0 else "B"
        found.append(None if prompt == PROMPTS[1] else choice)
    return found


def count_words(prompts: list[str], responses: list[str]) -> list[float]:
    return [float(len(response.split())) for response in responses[: len(prompts)]]


@pytest.fixture(scope="module")
def whole(tiny_llama_folder: Path, trained: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFiles:
    """An evaluation with judges that compare, further models, best-of-n and tasks."""
    folder = tmp_path_factory.mktemp("whole")
    held_out = write_rows(folder / "many.jsonl", [{"prompt": text} for text in PROMPTS])
    choices = [
        {"question": f"{text}?", "choices": ["a", "the cat sat"], "answer": n % 2} for n, text in enumerate(PROMPTS)
    ]
    free = [{"prompt": text, "answer": "cat"} for text in PROMPTS]
    tasks = [write_rows(folder / "choices.jsonl", choices), write_rows(folder / "free.jsonl", free)]
    settings = eval_settings(
        folder,
        tiny_llama_folder,
        model={"path": str(trained), "device": "cpu"},
        models=[{"path": str(tiny_llama_folder), "device": "cpu"}],
        data={"eval": held_out, "tasks": tasks},
        reward=[
            {"kind": "length", "maximum_words": 2},
            {"kind": "function", "name": "words", "function": f"{__name__}:count_words", "weight": 0.0},
        ],
        judges=[{"kind": "function", "name": "fewer", "function": f"{__name__}:prefers_fewer_words"}],
        proxy="words",
        best_of_n={"n": [1, 2, 4, 8, 9, 10], "samples": 10},
        tasks={"shots": [0, 1], "max_answer_tokens": 4},
        responses_per_prompt=2,
    )
    return evaluate(settings)


def test_a_judge_that_compares_has_a_win_rate_of_its_own(whole: RunFiles) -> None:
    summary: Any = whole.read_summary()
    found = summary["judges"]["fewer"]
    rows: Any = whole.read_samples()
    assert found["kind"] == "compares"
    assert found["consistency"] == 1.0
    assert found["lost_pairs"] == 2 - sum(
        row["prompt"] == PROMPTS[1] and row["response"] == row["baseline_response"] for row in rows
    )
    by_prompt: dict[str, list[float]] = {}
    for row in rows:
        mine, theirs = (len(row[key].split()) for key in ("response", "baseline_response"))
        if row["prompt"] != PROMPTS[1] or row["response"] == row["baseline_response"]:
            by_prompt.setdefault(row["prompt"], []).append((mine < theirs) + 0.5 * (mine == theirs))
    assert found["win_rate"] == pytest.approx(np.mean([np.mean(values) for values in by_prompt.values()]))


def test_further_models_are_points_of_reward_over_kl(whole: RunFiles, tiny_llama_folder: Path) -> None:
    summary: Any = whole.read_summary()
    assert set(summary["models"]) == {"candidate", "baseline", tiny_llama_folder.name}
    same, candidate = summary["models"][tiny_llama_folder.name], summary["models"]["candidate"]
    assert same["kl"] == pytest.approx(0.0, abs=1e-4)
    assert same["win_rate"] == 0.5
    assert candidate["kl"] == pytest.approx(summary["kl"])
    assert candidate["win_rate"] == pytest.approx(summary["win_rate"])
    assert candidate["components"] == summary["candidate"]["components"]


def test_best_of_n_climbs_the_proxy_and_not_what_the_proxy_is_against(whole: RunFiles) -> None:
    summary: Any = whole.read_summary()
    rows = summary["best_of_n"]
    assert [row["n"] for row in rows] == [1, 2, 4, 8, 9, 10]
    words = [row["components"]["words"]["mean"] for row in rows]
    assert words == sorted(words)
    assert words[-1] > words[0]
    # The judge punishes words beyond two.
    assert rows[-1]["components"]["length"]["mean"] < rows[0]["components"]["length"]["mean"]
    assert rows[-1]["win_rate"] < rows[0]["win_rate"]
    (peak,) = summary["gold_peaks"]
    assert (peak["gold"], peak["form"]) == ("length", "best_of_n")


def test_tasks_are_measured_before_and_after(whole: RunFiles) -> None:
    summary: Any = whole.read_summary()
    found = {(one["task"], one["shots"], one["measure"]): one for one in summary["tasks"]}
    assert set(found) == {
        (t, s, m) for t, ms in (("choices", ("sum", "mean")), ("free", ("exact",))) for s in (0, 1) for m in ms
    }
    for one in found.values():
        assert one["questions"] == len(PROMPTS)
        assert one["difference"] == pytest.approx(one["after"] - one["before"])
        assert one["difference_low"] <= one["difference"] <= one["difference_high"]


def test_the_page_shows_all_of_it_and_is_written_again_the_same(whole: RunFiles) -> None:
    html = whole.report_path.read_text()
    titles = ("Setting", "Who wins", "Best of n", "Reward over KL", "Alignment tax", "Answers", "Record")
    assert [title for title in titles if f">{title}</h2>" not in html] == []
    assert "fewer gave no verdict on" in html
    assert "<ins>" in html
    assert "<del>" in html
    page = whole.path / "again.html"
    report(ReportConfig(runs=(str(whole.path),), output=str(page)), resume=False)
    assert page.read_text() == html


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"proxy": "rm"}, r"^proxy='rm' is no reward source; there are length, regex"),
        (
            {"judges": [{"kind": "function", "name": "regex", "function": f"{__name__}:count_words"}]},
            "names two judges",
        ),
        (
            {"judges": [{"kind": "endpoint", "base_url": "http://127.0.0.1:9/v1", "model": "m"}]},
            "RLHF_JUDGE_KEY.*not set",
        ),
    ],
)
def test_what_cannot_work_is_refused_before_a_model_is_loaded(
    tmp_path: Path, tiny_llama_folder: Path, changes: dict[str, Any], message: str
) -> None:
    settings = eval_settings(tmp_path, tiny_llama_folder, **changes)
    with pytest.raises(ValueError, match=message):
        evaluate(settings)
    assert not RunFiles(settings["run_dir"]).holds_run()


def test_an_endpoints_replies_stay_in_the_run_folder_and_its_key_nowhere(
    tmp_path: Path, tiny_llama_folder: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RLHF_JUDGE_KEY", "sk-very-secret")
    reply = {"choices": [{"message": {"content": "tie"}}]}
    with serve_script(Endpoint(decide=lambda _call: Answer(body=reply))) as endpoint:
        judge = {"kind": "endpoint", "base_url": endpoint.url.removesuffix("/score"), "model": "org/judge 1"}
        settings = eval_settings(
            tmp_path, tiny_llama_folder, model={"path": str(trained), "device": "cpu"}, judges=[judge]
        )
        result = evaluate(settings)
    summary: Any = result.read_summary()
    assert summary["judges"]["org_judge_1"]["win_rate"] == 0.5
    replies = (result.path / REPLIES_FILE).read_text().splitlines()
    assert len(replies) == len(endpoint.calls) == 1 + 2 * len(result.read_samples())
    files = [path for path in result.path.rglob("*") if path.is_file()]
    assert not [path for path in files if b"sk-very-secret" in path.read_bytes()]


def test_best_of_n_without_a_proxy_is_refused(tmp_path: Path, tiny_llama_folder: Path) -> None:
    with pytest.raises(ValueError, match="name it in proxy"):
        EvalConfig.model_validate(eval_settings(tmp_path, tiny_llama_folder, best_of_n={}))
    with pytest.raises(ValueError, match="samples=4 is below the largest n=8"):
        EvalConfig.model_validate(
            eval_settings(tmp_path, tiny_llama_folder, proxy="length", best_of_n={"n": [8], "samples": 4})
        )


def test_every_model_is_loaded_once(
    tmp_path: Path, tiny_llama_folder: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []

    def counting(config: ModelConfig, **options: Any) -> Backbone:
        loaded.append(config.path)
        return load_backbone(config, **options)

    monkeypatch.setattr(models, "load_backbone", counting)
    evaluate(eval_settings(tmp_path, tiny_llama_folder, model={"path": str(trained), "device": "cpu"}))
    assert loaded == [str(trained), str(tiny_llama_folder)]
