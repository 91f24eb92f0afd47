"""Whether raters agree on which response is better, and who disagrees with everyone.

Owns Krippendorff's alpha on the outcomes of pairs, and the test of each rater against the others. A question is a pair
of items; two raters agree on it where they put the same one first. Reliabilities and weights are `reliability`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import false_discovery_control, hypergeom

from reward.rankings.bradley_terry import pair_votes
from reward.rankings.conditional_logit import Array, IntArray
from reward.rankings.judgements import Judgement

try:
    from krippendorff import alpha as alpha_of_counts
except ImportError:  # GPL-3.0, so it is the extra `agreement` and not a dependency of the package.
    alpha_of_counts = None

SIGNIFICANCE = 0.05
_RESAMPLES = 500
_OUTCOMES = (-1, 0, 1)


class MissingLibraryError(RuntimeError):
    """Krippendorff's alpha was asked for without the library that computes it."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """Krippendorff's alpha: 1 is perfect agreement, 0 is that of chance, below it raters contradict each other.

    Attributes:
        alpha: On the outcomes -1, 0 (tie) and 1 of pairs, as an interval scale.
        low: Lower end of the 95 % bootstrap interval over prompts.
        high: Upper end.
        questions: Pairs that at least two raters compared.
    """

    alpha: float
    low: float
    high: float
    questions: int


@dataclass(frozen=True, slots=True)
class RaterAgreement:
    """One rater against the majority of the others.

    Attributes:
        prompts: Prompts with a question on which the others had a majority.
        agreement: Share of questions answered like that majority, averaged over a prompt, then over prompts; a tie on
            either side is half. None without such a prompt.
        expected: The same of all other raters together. None where nobody else can be judged.
        p_value: Probability of so little agreement if this rater were like the others.
        disagrees: Whether that is significant at 5 % after correction for the number of raters.
    """

    prompts: int
    agreement: float | None
    expected: float | None
    p_value: float | None
    disagrees: bool


@dataclass(frozen=True, slots=True)
class _Answers:
    """Each rater's answer to each question, once; arrays of equal length."""

    question: IntArray
    outcome: IntArray
    rater: IntArray
    prompt: IntArray


def krippendorff_alpha(judgements: Sequence[Judgement], *, seed: int) -> Agreement | None:
    """Agreement of raters beyond chance on the pairs of items they compared (Krippendorff 2019, chapter 12).

    Which item of a pair is called the first is arbitrary, so each question is counted both ways round: chance then
    knows no first item. The interval resamples prompts.

    Args:
        judgements: Over responses, so that a pair means the same to everybody.
        seed: Of the bootstrap.

    Returns:
        None where no two raters compared the same pair, or nobody ever preferred anything.

    Raises:
        MissingLibraryError: the library `krippendorff` is not installed.
    """
    if alpha_of_counts is None:
        raise MissingLibraryError("Krippendorff's alpha needs the extra `agreement`: pip install krippendorff")
    answers = _answers(judgements)
    questions, index = np.unique(answers.question, return_inverse=True)
    counts = np.stack(
        [np.bincount(index[answers.outcome == value], minlength=len(questions)) for value in _OUTCOMES], 1
    )
    prompt = np.zeros(len(questions), dtype=np.int64)
    prompt[index] = answers.prompt
    shared = counts.sum(axis=1) > 1
    counts, prompt = counts[shared], np.unique(prompt[shared], return_inverse=True)[1]
    if not np.any(counts[:, [0, 2]]):
        return None
    value = _alpha(counts)
    generator = np.random.default_rng(seed)
    draws = [_resampled_alpha(counts, prompt, generator) for _ in range(_RESAMPLES)]
    low, high = np.nanquantile(draws, [0.025, 0.975])
    return Agreement(value, float(low), float(high), len(counts))


def rater_agreements(judgements: Sequence[Judgement], rater_count: int) -> list[RaterAgreement]:
    """Each rater against the others: does anybody disagree with everyone?

    A rater's answers are compared with the majority of the others' on the same questions; every prompt counts once, as
    the pairs of one ranking are not independent. Fisher's exact test (one-sided) compares the share with that of all
    other raters, and Benjamini and Hochberg's (1995) correction holds the share of false alarms at 5 %. Raters are
    assumed to be dealt prompts at random: one who gets the hard ones agrees less and is no worse.
    """
    answers = _answers(judgements)
    agreed, rater = _agreement_by_prompt(answers, rater_count)
    prompts = np.bincount(rater, minlength=rater_count)
    total = np.bincount(rater, agreed, rater_count)
    others, others_total = prompts.sum() - prompts, total.sum() - total
    # Rounded towards no alarm: an average over a prompt varies less than the coin that the test takes it for.
    p_values = hypergeom.cdf(
        np.ceil(total - 1e-9), prompts.sum(), np.ceil(total - 1e-9) + np.floor(others_total + 1e-9), prompts
    )
    judged = (prompts > 0) & (others > 0)
    adjusted = np.ones(rater_count)
    if np.any(judged):
        adjusted[judged] = false_discovery_control(p_values[judged])
    return [
        RaterAgreement(
            prompts=int(prompts[number]),
            agreement=float(total[number] / prompts[number]) if prompts[number] else None,
            expected=float(others_total[number] / others[number]) if others[number] else None,
            p_value=float(p_values[number]) if judged[number] else None,
            disagrees=bool(adjusted[number] < SIGNIFICANCE),
        )
        for number in range(rater_count)
    ]


def _answers(judgements: Sequence[Judgement]) -> _Answers:
    votes = pair_votes(judgements)
    rater = np.array([judgement.rater for judgement in judgements])[votes.judgement]
    prompt = np.array([judgement.prompt for judgement in judgements])[votes.judgement]
    width = 1 + int(votes.second.max(initial=0))
    question = votes.first * width + votes.second
    # One answer a rater, question and prompt: who was asked twice has not agreed with anybody.
    _, once = np.unique(np.stack([question, rater, prompt]), axis=1, return_index=True)
    return _Answers(question[once], votes.outcome[once], rater[once], prompt[once])


def _alpha(counts: IntArray) -> float:
    assert alpha_of_counts is not None, "krippendorff_alpha has looked for the library"
    both = np.concatenate([counts, counts[:, ::-1]])
    return float(alpha_of_counts(value_counts=both, value_domain=_OUTCOMES, level_of_measurement="interval"))


def _resampled_alpha(counts: IntArray, prompt: IntArray, generator: np.random.Generator) -> float:
    drawn = generator.integers(0, prompt.max() + 1, size=prompt.max() + 1)
    times = np.bincount(drawn, minlength=prompt.max() + 1)[prompt]
    repeated = np.repeat(counts, times, axis=0)
    return _alpha(repeated) if np.any(repeated[:, [0, 2]]) else np.nan


def _agreement_by_prompt(answers: _Answers, rater_count: int) -> tuple[Array, IntArray]:
    """Mean agreement with the others' majority, and the rater, for every rater and prompt that has one."""
    _, question = np.unique(answers.question, return_inverse=True)
    others = np.bincount(question, answers.outcome)[question] - answers.outcome
    decided = others != 0
    agreed = 0.5 * (1.0 + np.sign(others[decided]) * answers.outcome[decided])
    pairs, index = np.unique(answers.prompt[decided] * rater_count + answers.rater[decided], return_inverse=True)
    return np.bincount(index, agreed) / np.bincount(index), pairs % rater_count
