"""The strengths of the responses to one prompt -> a ranking, or weighted pairs: what a reward model trains on.

Owns the rows that are written. Where strengths come from is `strengths`; the rows are read by `reward.preferences`.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from reward.rankings.conditional_logit import Array
from reward.rankings.judgements import JudgementSet, order_of
from reward.rankings.strengths import StrengthFit
from reward.row_fields import Ranking


@dataclass(frozen=True, slots=True)
class RankedPrompt:
    """K responses to one prompt with what was found of them.

    Attributes:
        prompt: As written.
        responses: K different texts.
        models: Their models; None where rows name none.
        ranking: Groups of places, best first.
        strengths: (K,) log-odds, or plain scores.
        covariance: (K, K) of the strengths; None for plain scores.
        judgements: How many there were.
    """

    prompt: object
    responses: tuple[str, ...]
    models: tuple[str | None, ...]
    ranking: Ranking
    strengths: Array
    covariance: Array | None
    judgements: int


@dataclass(frozen=True, slots=True)
class RankedPrompts:
    """What came of the prompts.

    Attributes:
        prompts: With something to prefer.
        tied: How many were left out because all their responses tie: raters who cancel each other out.
        without_text: How many were left out because the log keeps no texts.
        repeated: How many responses were left out because another model gave the same text.
    """

    prompts: list[RankedPrompt]
    tied: int
    without_text: int
    repeated: int


def rank_prompts(judged: JudgementSet, fit: StrengthFit | None, *, tie_margin: float) -> RankedPrompts:
    """Orders the responses to each prompt by strength.

    Args:
        judged: The judgements.
        fit: Of strengths over `judged.responses`; None takes the responses' scores.
        tie_margin: Responses at most so far below the best of their group tie with it.
    """
    places: dict[int, list[int]] = defaultdict(list)
    for index, response in enumerate(judged.responses):
        places[response.prompt].append(index)
    counts = Counter(judgement.prompt for judgement in judged.judgements)
    ranked: list[RankedPrompt] = []
    tied = without_text = repeated = 0
    for prompt, indices in places.items():
        texts = [judged.responses[index].text for index in indices]
        if None in texts:
            without_text += 1
            continue
        kept = [place for place, text in enumerate(texts) if texts.index(text) == place]
        repeated += len(texts) - len(kept)
        found = _rank(judged, prompt, indices, kept, fit, tie_margin, counts[prompt])
        if len(found.ranking) > 1:
            ranked.append(found)
        else:
            tied += 1
    return RankedPrompts(ranked, tied, without_text, repeated)


def ranking_row(found: RankedPrompt) -> dict[str, Any]:
    """`prompt`, `responses`, `ranking` (groups of indices, best first), and where the order comes from."""
    row: dict[str, Any] = {
        "prompt": found.prompt,
        "responses": list(found.responses),
        "ranking": [list(group) for group in found.ranking],
        "strengths": found.strengths.tolist(),
        "judgements": found.judgements,
    }
    if found.covariance is not None:
        row["standard_errors"] = np.sqrt(np.diag(found.covariance)).tolist()
    return row | ({"models": list(found.models)} if any(found.models) else {})


def pair_rows(found: RankedPrompt) -> Iterator[dict[str, Any]]:
    """`prompt`, `chosen`, `rejected`, `margin`, `weight` for every two responses that do not tie.

    The margin is the difference d of the strengths. The weight is the probability that the order is right minus that it
    is wrong, 2 Phi(d / se(d)) - 1: near 0 for a narrow majority of three votes, near 1 for a clear one of thirty. Where
    strengths are log-odds, `win_probability` is sigmoid(d), the share of raters who would prefer the chosen response.
    Plain scores come without errors and weigh 1.
    """
    for better, worse in combinations(found.ranking, 2):
        for winner in better:
            for loser in worse:
                yield _pair_row(found, winner, loser)


def _pair_row(found: RankedPrompt, winner: int, loser: int) -> dict[str, Any]:
    margin = float(found.strengths[winner] - found.strengths[loser])
    row: dict[str, Any] = {
        "prompt": found.prompt,
        "chosen": found.responses[winner],
        "rejected": found.responses[loser],
        "margin": margin,
        "weight": _certainty(found, winner, loser),
    }
    if found.covariance is not None:
        row["win_probability"] = 1.0 / (1.0 + math.exp(-margin))
    models = {"chosen_model": found.models[winner], "rejected_model": found.models[loser]}
    return row | (models if any(models.values()) else {})


def _rank(
    judged: JudgementSet,
    prompt: int,
    indices: Sequence[int],
    kept: Sequence[int],
    fit: StrengthFit | None,
    tie_margin: float,
    judgements: int,
) -> RankedPrompt:
    responses = [judged.responses[indices[place]] for place in kept]
    if fit is None:
        strengths, covariance = np.array([response.score or 0.0 for response in responses]), None
    else:
        strengths = fit.strengths[np.array(indices)[kept]]
        # The responses to a prompt stand together and meet no others, so their block of the information is all of it.
        covariance = fit.block_covariance(indices[0], indices[-1] + 1)[np.ix_(kept, kept)]
    return RankedPrompt(
        prompt=judged.prompts[prompt],
        responses=tuple(response.text or "" for response in responses),
        models=tuple(None if response.model is None else judged.models[response.model] for response in responses),
        ranking=order_of(strengths.tolist(), tie_margin=tie_margin),
        strengths=strengths,
        covariance=covariance,
        judgements=judgements,
    )


def _certainty(found: RankedPrompt, winner: int, loser: int) -> float:
    if found.covariance is None:
        return 1.0
    variance = found.covariance[winner, winner] + found.covariance[loser, loser] - 2 * found.covariance[winner, loser]
    lead = found.strengths[winner] - found.strengths[loser]
    return math.erf(lead / math.sqrt(2.0 * variance))
