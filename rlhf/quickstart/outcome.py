"""What the quickstart achieved: SFT, PPO and PPO-ptx on the same held-out prompts, by the proxy and by the gold reward.

Owns the final measurements and their summary. The world, the judges and the models are others' business.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from policies.config import ModelConfig
from reward.composite import build_reward
from rlhf.evaluation.answers import Answers, Evaluator
from rlhf.evaluation.models import LoadedModel
from rlhf.evaluation.win_rates import win_rate
from rlhf.quickstart.recipe import MAX_PROMPT_TOKENS, SAMPLING, Layout, reward_sources
from rlhf.quickstart.world import prompt_rows, stories
from rollout.prompts import prompts_from_rows

BOOTSTRAP_RESAMPLES = 2000
SHOWN_ANSWERS = 3


@dataclass(frozen=True, slots=True)
class Outcome:
    """One policy's held-out numbers.

    Attributes:
        name: `sft`, `ppo` or `ppo_ptx`.
        numbers: As they stand in summary.json.
        answers: Texts, in the order of the prompts.
        gold: Gold reward of each answer.
    """

    name: str
    numbers: Mapping[str, float]
    answers: Sequence[str]
    gold: Sequence[float]


@dataclass(frozen=True, slots=True)
class Outcomes:
    """All policies, and the prompts that they answered."""

    prompts: Sequence[str]
    policies: Sequence[Outcome]

    @property
    def shown(self) -> list[int]:
        """Prompts for the table of samples: those on which the last policy gained a middling amount over the first."""
        gains = np.array(self.policies[-1].gold) - np.array(self.policies[0].gold)
        order = np.argsort(gains, kind="stable")
        # Neither the best nor the worst cases: quartiles of the gain, so that the samples are honest.
        return [int(order[len(order) * share // 4]) for share in (3, 2, 1)][:SHOWN_ANSWERS]


def measure_outcomes(layout: Layout, *, prompts: int, seed: int) -> Outcomes:
    """Lets every policy answer the same prompts with the same noise; SFT is compared with fresh samples of itself."""
    sft = LoadedModel(ModelConfig(path=layout.model("sft")))
    tokenizer = sft.tokenizer
    rows = prompt_rows(prompts, seed + 2, split="eval")
    asked = prompts_from_rows(rows, tokenizer, max_prompt_tokens=MAX_PROMPT_TOKENS, source="quickstart prompts").prompts
    judge = build_reward(reward_sources(layout), policy_tokenizer=tokenizer, shared_backbone=None)
    texts = stories(400, seed, split="eval")
    evaluator = Evaluator(asked, judge, sampling=SAMPLING, texts=texts, seed=seed)
    baseline = evaluator.answer(sft, seed=seed + 1)
    policies: list[Outcome] = []
    for name in ("sft", "ppo", "ppo_ptx"):
        model = sft if name == "sft" else LoadedModel(ModelConfig(path=layout.model(name)))
        answers = evaluator.answer(model)
        policies.append(_outcome(name, answers, baseline, evaluator.kl(answers, sft), seed))
    return Outcomes([prompt.text for prompt in asked], policies)


def _outcome(name: str, answers: Answers, baseline: Answers, kl: float, seed: int) -> Outcome:
    gold = answers.reward.components["gold"]
    versus = win_rate(
        gold,
        baseline.reward.components["gold"],
        [prompt.id for prompt in answers.batch.prompts],
        resamples=BOOTSTRAP_RESAMPLES,
        seed=seed,
    )
    assert answers.perplexity is not None, "the quickstart always measures the alignment tax"
    numbers = {
        "proxy_reward": float(np.nanmean(answers.reward.components["proxy"])),
        "gold_reward": float(np.nanmean(gold)),
        "gold_win_rate": versus.mean,
        "gold_win_rate_low": versus.low,
        "gold_win_rate_high": versus.high,
        "kl": kl,
        "pretrain_ppl": answers.perplexity,
    }
    return Outcome(name, numbers, answers.texts, [float(score) for score in gold])


def summary_of(outcomes: Outcomes, seconds: Mapping[str, float]) -> dict[str, Any]:
    """The content of summary.json."""
    return {
        **{outcome.name: dict(outcome.numbers) for outcome in outcomes.policies},
        "seconds": dict(seconds),
        "seconds_total": sum(seconds.values()),
    }
