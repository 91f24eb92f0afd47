"""How sure and how strong the label of a data row is: its weight, margin, strengths and win probability.

Owns these optional columns. What a row must hold is `reward.preferences`; what training makes of them is
`rlhf.preference_objective`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from reward.row_fields import BadRowError, Row, is_list, shortened


def read_weight(row: Row) -> float:
    """Column `weight`, at least 0; 1 where the row has none.

    Raises:
        BadRowError: it is no finite number, or negative.
    """
    weight = row.get("weight")
    if weight is None:
        return 1.0
    if not _is_finite(weight) or weight < 0:
        raise BadRowError(f"field 'weight' is {shortened(weight)}; a number of at least 0 is needed: correct it")
    return float(weight)


def read_win_probability(row: Row) -> float:
    """Column `win_probability` of a pair: that of chosen against rejected; 1 where the row has none.

    Raises:
        BadRowError: it is not above 0.5 and at most 1.
    """
    probability = row.get("win_probability")
    if probability is None:
        return 1.0
    if not _is_finite(probability) or not 0.5 < probability <= 1:
        raise BadRowError(
            f"field 'win_probability' is {shortened(probability)}; a number above 0.5 and at most 1 is needed: swap "
            "'chosen' and 'rejected' where it is below, remove the row where it is 0.5"
        )
    return float(probability)


def read_margin(margin: Any) -> tuple[float, float] | None:
    """Strengths of chosen and rejected: of the field `margin`, (margin, 0); of two scores, these; of None, None.

    Raises:
        BadRowError: it is neither a finite number of at least 0, nor two finite numbers in falling order.
    """
    if margin is None:
        return None
    if not is_list(margin):
        if not _is_finite(margin) or margin < 0:
            raise BadRowError(
                f"field 'margin' is {shortened(margin)}; how much better chosen is, a number of at least 0, is needed: "
                "correct or remove the field"
            )
        return float(margin), 0.0
    if len(margin) != 2 or not all(map(_is_finite, margin)) or margin[0] < margin[1]:
        raise BadRowError(
            f"field 'margin' is {shortened(margin)}; scores of chosen and rejected, two numbers of which the second is "
            "not above the first, are needed: correct them, or data.format.margin_field"
        )
    return float(margin[0]), float(margin[1])


def read_strengths(row: Row, responses: Sequence[Any]) -> tuple[float, ...] | None:
    """Column `strengths` of a ranking, else the `score` of each response; None where the row has neither.

    Args:
        row: The row.
        responses: Its responses as written, texts or objects.

    Raises:
        BadRowError: strengths are not one finite number for each response, or a score is not finite.
    """
    strengths = row.get("strengths")
    if strengths is None:
        return _scores(responses)
    if not is_list(strengths) or len(strengths) != len(responses) or not all(map(_is_finite, strengths)):
        raise BadRowError(
            f"field 'strengths' is {shortened(strengths)}; it must hold {len(responses)} finite numbers, one for each "
            "response: correct or remove the field"
        )
    return tuple(map(float, strengths))


def _scores(responses: Sequence[Any]) -> tuple[float, ...] | None:
    scores: list[Any] = [response.get("score") if isinstance(response, Mapping) else None for response in responses]
    for index, score in enumerate(scores):
        if _is_number(score) and not math.isfinite(score):
            raise BadRowError(f"field 'responses[{index}].score' is {score}; a finite number is needed: correct it")
    return tuple(map(float, scores)) if all(map(_is_number, scores)) else None


def _is_finite(value: Any) -> bool:
    return _is_number(value) and math.isfinite(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
