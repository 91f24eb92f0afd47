"""`rlhf eval`: two models answer the same held-out prompts, judges score both, and what alignment cost is measured.

Owns sampling for evaluation, the win rate with its interval, the KL to the baseline and the perplexity on held-out
text. Judges are the reward sources of `reward`; it trains nothing.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from transformers import PreTrainedTokenizerBase

from policies.causal import CausalPolicy
from policies.config import ModelConfig
from policies.loading import load_backbone, policy_adapter
from policies.tokenization import load_tokenizer, tokenizer_fingerprint
from reward.composite import build_reward
from reward.interface import RewardFn, RewardOutput, Scores
from reward.intervals import bootstrap_interval
from rlhf.config import EvalConfig
from rlhf.data import load_rows
from rlhf.reports.page import write_report
from rlhf.reports.training import generic_training_page
from rlhf.requests import reward_requests
from rlhf.runtime.metrics import open_metric_logger
from rlhf.runtime.run_folder import RunFolder, refuse_existing_run
from rlhf.text_stream import perplexity, require_texts
from rollout.config import SamplingConfig
from rollout.engines import build_generator
from rollout.generation import repeat_prompts
from rollout.prompts import prompts_from_rows
from rollout.types import Prompt, RolloutBatch

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean over prompts with its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Answers:
    """What one model said to the prompts, and what the judges thought of it.

    Attributes:
        batch: Prompts and completions; the completions carry the model's own log-probs.
        texts: Decoded responses.
        reward: Scores (B,), components by judge.
        perplexity: On held-out text; None without any.
    """

    batch: RolloutBatch
    texts: Sequence[str]
    reward: RewardOutput
    perplexity: float | None


def win_rate(candidate: Scores, baseline: Scores, prompt_ids: Sequence[str], *, resamples: int, seed: int) -> Interval:
    """Mean over prompts of 1 (candidate higher), 0.5 (equal) or 0; see `score_gain` for the arguments."""
    outcomes = np.where(candidate == baseline, 0.5, (candidate > baseline).astype(float))
    return _over_prompts(np.where(_both_scored(candidate, baseline), outcomes, np.nan), prompt_ids, resamples, seed)


def score_gain(
    candidate: Scores, baseline: Scores, prompt_ids: Sequence[str], *, resamples: int, seed: int
) -> Interval:
    """Mean over prompts of candidate's minus baseline's score; the interval resamples prompts, not answers.

    Args:
        candidate: (B,) scores of the candidate's answers.
        baseline: (B,) scores of the baseline's answers to the same prompts, in the same order.
        prompt_ids: (B,) prompt of each answer; several answers to one prompt are not independent.
        resamples: Bootstrap resamples.
        seed: Seed of the resampling.

    Raises:
        ValueError: if no answer was scored on both sides; an answer that either side lost (NaN) is left out.
    """
    return _over_prompts((candidate - baseline).astype(float), prompt_ids, resamples, seed)


def _both_scored(candidate: Scores, baseline: Scores) -> NDArray[np.bool_]:
    return np.isfinite(candidate) & np.isfinite(baseline)


def _over_prompts(values: Array, prompt_ids: Sequence[str], resamples: int, seed: int) -> Interval:
    by_prompt: dict[str, list[float]] = {}
    for prompt_id, value in zip(prompt_ids, values.tolist(), strict=True):
        if np.isfinite(value):
            by_prompt.setdefault(prompt_id, []).append(value)
    if not by_prompt:
        raise ValueError("reward: no prompt was scored for both models; a comparison needs at least one")
    means = np.array([np.mean(prompt_values) for prompt_values in by_prompt.values()], np.float64)
    low, high = bootstrap_interval(means, seed=seed, resamples=resamples)
    return Interval(float(means.mean()), low, high)


class Evaluator:
    """The fixed side of a comparison: prompts, judges, held-out text and sampling noise, the same for every model.

    Args:
        prompts: What is asked.
        judge: Scores the answers.
        sampling: How models answer.
        texts: Held-out text for perplexity; may be empty.
        seed: Seed of the sampling noise, common to all models.
        responses_per_prompt: G, answers of each model to each prompt.
    """

    def __init__(
        self,
        prompts: Sequence[Prompt],
        judge: RewardFn,
        *,
        sampling: SamplingConfig,
        texts: Sequence[str],
        seed: int,
        responses_per_prompt: int = 1,
    ) -> None:
        self._prompts, self._judge, self._sampling, self._texts = prompts, judge, sampling, texts
        self._seed, self._responses_per_prompt = seed, responses_per_prompt

    def answer(self, model: ModelConfig) -> Answers:
        """Loads `model`, lets it answer every prompt, scores the answers and measures perplexity.

        Raises:
            ValueError: the model cannot be loaded.
        """
        backbone = load_backbone(model)
        adapter = policy_adapter(backbone)
        repeated, indices = repeat_prompts(self._prompts, self._responses_per_prompt)
        generator = build_generator(backbone, adapter, self._sampling)
        batch = RolloutBatch(repeated, generator.generate(repeated, indices, seed=self._seed, step=0))
        requests = reward_requests(batch, backbone.tokenizer)
        reward = self._judge(requests)
        policy = CausalPolicy(backbone, adapter=adapter, temperature=1.0)
        texts = [request.response for request in requests]
        return Answers(batch, texts, reward, perplexity(policy, self._texts) if self._texts else None)

    def kl(self, answers: Answers, baseline: ModelConfig) -> float:
        """KL from the model that gave `answers` to `baseline`, nats per sequence.

        Mean over answers of the summed k1 estimate.
        """
        backbone = load_backbone(baseline)
        generator = build_generator(backbone, policy_adapter(backbone), self._sampling)
        completions = answers.batch.completions
        reference = generator.logprobs(
            [prompt.token_ids for prompt in answers.batch.prompts], [completion.token_ids for completion in completions]
        )
        gaps = [(c.logprobs - r).sum() for c, r in zip(completions, reference, strict=True)]
        return float(np.mean(gaps))


def run(config: EvalConfig, *, resume: bool) -> None:
    """Runs `rlhf eval`: summary.json, samples.jsonl and report.html in run_dir.

    Raises:
        ValueError: what the user can fix.
    """
    resolved = config.model_dump(mode="json")
    start = time.perf_counter()
    if not resume:
        refuse_existing_run(config.run_dir)
    evaluator, facts = build_evaluator(config)
    candidate, baseline = evaluator.answer(config.model), evaluator.answer(config.baseline)
    kl = evaluator.kl(candidate, config.baseline)
    summary = _summary(config, candidate, baseline, kl) | facts | {"seconds": time.perf_counter() - start}
    # Opened last: an evaluation keeps no state, so one that failed must not leave a folder that holds a run.
    open_folder = RunFolder.resume if resume else RunFolder.create
    with (
        open_folder(config.run_dir, resolved) as folder,
        open_metric_logger(folder, config.tracking, resolved, stage="eval", total_steps=1) as logger,
    ):
        folder.truncate_after(-1)
        logger.log(1, _metrics(summary))
        logger.log_samples(1, _sample_rows(candidate, baseline))
        logger.close(summary)
        page = write_report(folder.path, generic_training_page(folder.path, "Evaluation"))
    _print(Console(highlight=False), summary, page)


def _print(console: Console, summary: Mapping[str, Any], page: Path) -> None:
    """The comparison as two tables: the models side by side, and each judge's verdict."""
    sides = Table("", "score", "tokens an answer", "ended by itself", "perplexity on text")
    for side in ("candidate", "baseline"):
        numbers = summary[side]
        cells = (numbers["score"], numbers["response_length_mean"], numbers["eos_rate"], numbers["pretrain_ppl"])
        sides.add_row(side, *("-" if cell is None else f"{cell:.3f}" for cell in cells))
    judges = Table("judge", "win rate", "95 % interval", "gain in score", "95 % interval")
    for name, numbers in summary["judges"].items():
        judges.add_row(
            name,
            f"{numbers['win_rate']:.3f}",
            f"{numbers['win_rate_low']:.3f} to {numbers['win_rate_high']:.3f}",
            f"{numbers['gain']:+.3f}",
            f"{numbers['gain_low']:+.3f} to {numbers['gain_high']:+.3f}",
        )
    console.print(sides)
    console.print(judges)
    console.print(f"KL from the baseline: {summary['kl']:.2f} nats per answer; {summary['prompts']} prompts")
    console.print(f"report: {page}")


def build_evaluator(config: EvalConfig) -> tuple[Evaluator, dict[str, Any]]:
    """The evaluator that `config` describes, and facts about its data for the summary."""
    tokenizer = load_tokenizer(config.model)
    _require_same_tokenizer(tokenizer, load_tokenizer(config.baseline))
    found = prompts_from_rows(
        load_rows(config.data.eval, field="data.eval"),
        tokenizer,
        max_prompt_tokens=config.max_prompt_tokens,
        source=f"data.eval={config.data.eval}",
        on_bad_row=config.data.on_bad_row,
        chat_template=config.model.chat_template,
    )
    prompts = found.prompts[: config.prompts]
    texts: list[str] = []
    if config.data.pretrain_eval is not None:
        rows = load_rows(config.data.pretrain_eval, field="data.pretrain_eval")
        texts, _ = require_texts(rows, source="data.pretrain_eval", on_bad_row=config.data.on_bad_row)
    judge = build_reward(config.reward, policy_tokenizer=tokenizer, shared_backbone=None)
    evaluator = Evaluator(
        prompts,
        judge,
        sampling=config.sampling,
        texts=texts,
        seed=config.seed,
        responses_per_prompt=config.responses_per_prompt,
    )
    facts: dict[str, Any] = {"prompts": len(prompts), "skipped_rows": len(found.skipped)}
    if config.data.train is not None:
        trained_on = {str(row.get("prompt")) for row in load_rows(config.data.train, field="data.train")}
        facts["prompts_seen_in_training"] = sum(prompt.text in trained_on for prompt in prompts)
    return evaluator, facts


def _require_same_tokenizer(candidate: PreTrainedTokenizerBase, baseline: PreTrainedTokenizerBase) -> None:
    """Prompts are tokenized once and the KL compares the models token by token; another vocabulary would be noise."""
    if tokenizer_fingerprint(candidate) != tokenizer_fingerprint(baseline):
        raise ValueError(
            f"baseline.path={baseline.name_or_path!r} has another tokenizer than "
            f"model.path={candidate.name_or_path!r}; a win rate and a KL are measured between models that share one: "
            "name a baseline of the same family"
        )


def _describe(answers: Answers) -> dict[str, Any]:
    lengths = [len(completion.token_ids) for completion in answers.batch.completions]
    return {
        "score": float(np.nanmean(answers.reward.scores)),
        "score_std": float(np.nanstd(answers.reward.scores)),
        "components": {name: float(np.nanmean(scores)) for name, scores in answers.reward.components.items()},
        "unscored": len(answers.reward.failures),
        "response_length_mean": float(np.mean(lengths)),
        "eos_rate": float(np.mean([not completion.is_truncated for completion in answers.batch.completions])),
        "pretrain_ppl": answers.perplexity,
    }


def _summary(config: EvalConfig, candidate: Answers, baseline: Answers, kl: float) -> dict[str, Any]:
    prompt_ids = [prompt.id for prompt in candidate.batch.prompts]

    def versus(mine: Scores, theirs: Scores) -> dict[str, float]:
        settings: dict[str, Any] = {"resamples": config.bootstrap_resamples, "seed": config.seed}
        wins = win_rate(mine, theirs, prompt_ids, **settings)
        gain = score_gain(mine, theirs, prompt_ids, **settings)
        return {
            "win_rate": wins.mean,
            "win_rate_low": wins.low,
            "win_rate_high": wins.high,
            "gain": gain.mean,
            "gain_low": gain.low,
            "gain_high": gain.high,
        }

    judges = {
        name: versus(scores, baseline.reward.components[name]) for name, scores in candidate.reward.components.items()
    }
    return {
        "candidate": _describe(candidate),
        "baseline": _describe(baseline),
        **versus(candidate.reward.scores, baseline.reward.scores),
        "judges": judges,
        "kl": kl,
    }


def _metrics(summary: Mapping[str, Any]) -> dict[str, float]:
    metrics = {
        "eval/win_rate": summary["win_rate"],
        "eval/win_rate_low": summary["win_rate_low"],
        "eval/win_rate_high": summary["win_rate_high"],
        "eval/kl": summary["kl"],
    }
    for side in ("candidate", "baseline"):
        metrics[f"eval/{side}/score"] = summary[side]["score"]
        metrics[f"eval/{side}/response_length_mean"] = summary[side]["response_length_mean"]
        if summary[side]["pretrain_ppl"] is not None:
            metrics[f"eval/{side}/pretrain_perplexity"] = summary[side]["pretrain_ppl"]
    return metrics


def _sample_rows(candidate: Answers, baseline: Answers) -> list[dict[str, Any]]:
    columns = zip(
        candidate.batch.prompts,
        candidate.texts,
        candidate.reward.scores,
        baseline.texts,
        baseline.reward.scores,
        strict=True,
    )
    return [
        {
            "prompt_id": prompt.id,
            "prompt": prompt.text,
            "response": mine,
            "score": float(mine_score),
            "baseline_response": theirs,
            "baseline_score": float(theirs_score),
        }
        for prompt, mine, mine_score, theirs, theirs_score in columns
    ]
