"""Judges that see two answers at once: asked in both orders, because whoever stands first is often preferred.

Owns what two verdicts on one pair mean together, and judges that are Python functions; the one behind an endpoint is
`endpoint_judge`.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from reward.config import FunctionSource
from reward.functions import import_function
from rlhf.evaluation.config import FunctionJudge
from rlhf.evaluation.win_rates import Array

Choice = Literal["A", "B", "tie"]
CHOICES: tuple[Choice, ...] = ("A", "B", "tie")


@dataclass(frozen=True, slots=True)
class Verdicts:
    """What a judge said of a list of pairs.

    Attributes:
        choices: One for each pair; None where there is none.
        reasons: Why there is none, by index.
    """

    choices: Sequence[Choice | None]
    reasons: Mapping[int, str]


class ComparingJudge(Protocol):
    """Anything that says which of two answers is better."""

    def __call__(self, prompts: Sequence[str], answers_a: Sequence[str], answers_b: Sequence[str], /) -> Verdicts:
        """One verdict for each pair; a pair that cannot be judged has a reason, and raises nothing."""
        ...


class JudgeFunctionError(RuntimeError):
    """A judge's function returned something that is not one verdict for each pair."""


@dataclass(frozen=True, slots=True)
class SwappedOutcomes:
    """Verdicts on both orders of each pair, put together.

    Attributes:
        outcomes: (B,) 1 where both orders prefer the candidate, 0 where both prefer the baseline, NaN where an order
            has no verdict, else 0.5.
        reasons: Why a pair has no outcome, by index.
        consistency: Share of the pairs judged in both orders on which these agree; NaN without any.
        first_preferred: Share of all verdicts but ties that prefer the answer shown first; 0.5 is unbiased, and NaN
            says that there were ties only.
    """

    outcomes: Array
    reasons: Mapping[int, str]
    consistency: float
    first_preferred: float


def judge_both_orders(
    judge: ComparingJudge, prompts: Sequence[str], candidate: Sequence[str], baseline: Sequence[str]
) -> SwappedOutcomes:
    """Asks for every pair twice, candidate first and baseline first.

    An order in which the judge prefers one answer, and another in which it doesn't, say nothing about the answers: the
    pair is a tie (Zheng et al. 2023, section 3.4). So is, unasked, a pair of equal answers.
    """
    asked = [index for index, (mine, theirs) in enumerate(zip(candidate, baseline, strict=True)) if mine != theirs]
    mine, theirs = [candidate[index] for index in asked], [baseline[index] for index in asked]
    verdicts = judge([prompts[index] for index in asked] * 2, mine + theirs, theirs + mine)
    count, choices = len(asked), verdicts.choices
    forward = [_WINS_FIRST[choice] if choice else np.nan for choice in choices[:count]]
    backward = [1.0 - _WINS_FIRST[choice] if choice else np.nan for choice in choices[count:]]
    wins = np.array([forward, backward], np.float64).reshape(2, count)
    agree, judged = wins[0] == wins[1], np.isfinite(wins).all(axis=0)
    outcomes = np.full(len(prompts), 0.5)
    outcomes[asked] = np.where(judged, np.where(agree, wins[0], 0.5), np.nan)
    decided = [choice for choice in choices if choice in ("A", "B")]
    return SwappedOutcomes(
        outcomes,
        {asked[index % count]: verdicts.reasons[index] for index in sorted(verdicts.reasons)},
        consistency=float(agree[judged].mean()) if judged.any() else float("nan"),
        first_preferred=decided.count("A") / len(decided) if decided else float("nan"),
    )


_WINS_FIRST: Mapping[Choice, float] = {"A": 1.0, "B": 0.0, "tie": 0.5}


class FunctionVerdicts:
    """A Python function as a judge.

    Args:
        config: The function and its arguments.

    Raises:
        ValueError: there is no such function, or it does not take the arguments.
    """

    def __init__(self, config: FunctionJudge) -> None:
        self._config = config
        source = FunctionSource(function=config.function, arguments=config.arguments)
        self._function: Callable[..., Any] = import_function(source, field="judges.function")
        try:
            inspect.signature(self._function).bind([], [], [], **config.arguments)
        except TypeError as error:
            raise ValueError(
                f"judges.function={config.function!r}, arguments={config.arguments!r}: {error}; it is called as "
                "f(prompts, answers_a, answers_b, **arguments)"
            ) from error

    def __call__(self, prompts: Sequence[str], answers_a: Sequence[str], answers_b: Sequence[str]) -> Verdicts:
        """See `ComparingJudge`.

        Raises:
            JudgeFunctionError: the function did not return one verdict for each pair.
        """
        found = self._function(list(prompts), list(answers_a), list(answers_b), **self._config.arguments)
        choices: list[Any] = list(found) if isinstance(found, Sequence) and not isinstance(found, str) else [found]
        wrong = [choice for choice in choices if choice is not None and choice not in CHOICES]
        if wrong or len(choices) != len(prompts):
            what = repr(wrong[0]) if wrong else f"{len(choices)} verdicts for {len(prompts)} pairs"
            raise JudgeFunctionError(
                f"judges.function={self._config.function!r} returned {what}; it returns 'A', 'B', 'tie' or None for "
                "each pair"
            )
        lost = [index for index, choice in enumerate(choices) if choice is None]
        return Verdicts(choices, dict.fromkeys(lost, "the function gave no verdict"))
