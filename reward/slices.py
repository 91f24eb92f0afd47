"""Accuracy on parts of the held-out pairs: by length, by size of the score difference, by label strength, by source.

Owns the cutting. A model whose accuracy comes from one part alone shows it here.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reward.evaluation import ScoredPairs
from reward.intervals import Array, Indices, share_interval

_MOST_LEVELS = 6
_MOST_NAMES = 12


@dataclass(frozen=True, slots=True)
class Slice:
    """Some of the pairs.

    Attributes:
        name: What they have in common.
        pairs: How many.
        accuracy: Share ranked as the labels say; each pair weighs what it weighs in the accuracy of all.
        accuracy_low: Lower end of the 95 % interval over prompts.
        accuracy_high: Upper end.
    """

    name: str
    pairs: int
    accuracy: float
    accuracy_low: float
    accuracy_high: float


def by_length_difference(pairs: ScoredPairs, lengths: Array) -> list[Slice]:
    """Cut by winner's minus loser's length: below -m, down to -1, 0, up to m, above; m is the median of the unequal.

    Args:
        pairs: From `score_pairs`.
        lengths: (S,) length of each response.
    """
    difference = lengths[pairs.winner] - lengths[pairs.loser]
    unequal = np.abs(difference[difference != 0])
    middle = max(1, int(np.median(unequal))) if len(unequal) else 1
    parts = {
        f"< -{middle}": difference < -middle,
        f"-{middle} to -1" if middle > 1 else "-1": (difference >= -middle) & (difference < 0),
        "0": difference == 0,
        f"1 to {middle}" if middle > 1 else "1": (difference > 0) & (difference <= middle),
        f"> {middle}": difference > middle,
    }
    return _slices(pairs, parts)


def by_score_gap(pairs: ScoredPairs) -> list[Slice]:
    """Quarters by the size of the score difference, which the model knows without the label."""
    return by_quarter(pairs, np.abs(pairs.gap))


def by_value(pairs: ScoredPairs, values: NDArray[Any], *, most: int = _MOST_NAMES) -> list[Slice]:
    """Cut by a property of each pair.

    Args:
        pairs: From `score_pairs`.
        values: (Q,) numbers: a slice for each of up to six levels, quarters where there are more; NaN is left out. Or
            names (dtype object): a slice for each, largest first; None is left out.
        most: Names with a slice of their own, less one where there are more; the rest is put together.
    """
    if values.dtype != object:
        levels = np.unique(values[np.isfinite(values)])
        if len(levels) > _MOST_LEVELS:
            return by_quarter(pairs, values)
        return _slices(pairs, {f"{level:.4g}": values == level for level in levels})
    names = [name for name, _ in Counter(value for value in values if value is not None).most_common()]
    if len(names) <= most:
        return _slices(pairs, {name: values == name for name in names})
    own, rest = names[: most - 1], names[most - 1 :]
    parts = {name: values == name for name in own}
    return _slices(pairs, parts | {other_sources_name(len(rest)): np.isin(values, np.array(rest, dtype=object))})


def by_quarter(pairs: ScoredPairs, values: Array) -> list[Slice]:
    """Quarters of the pairs, from the smallest to the largest of (Q,) values, named by their upper end.

    Equal values stay together; NaN is left out.
    """
    known = values[np.isfinite(values)]
    edges = np.unique(np.quantile(known, [0.25, 0.5, 0.75]))
    places: Indices = np.searchsorted(edges, values, side="left")
    parts: dict[str, NDArray[np.bool_]] = {}
    for place in np.unique(places):
        chosen = (places == place) & np.isfinite(values)
        low, high = (f"{end:.2g}" for end in (values[chosen].min(), values[chosen].max()))
        parts[low if low == high else f"to {high}"] = chosen
    return _slices(pairs, parts)


def other_sources_name(count: int) -> str:
    """Name of the slice that holds what has none of its own."""
    return f"{count} others"


def _slices(pairs: ScoredPairs, parts: dict[str, NDArray[np.bool_]]) -> list[Slice]:
    return [_slice(name, pairs, chosen) for name, chosen in parts.items() if chosen.any()]


def _slice(name: str, pairs: ScoredPairs, chosen: NDArray[np.bool_]) -> Slice:
    part = pairs.where(chosen)
    low, high = share_interval(part.correct, part.weight, part.cluster)
    return Slice(name, len(part.gap), part.mean(part.correct), low, high)
