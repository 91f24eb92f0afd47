"""What is measured of a reward model after its last step, as the plain values of summary.json.

Owns the layout of those values. The measurements are `reward.assessment`, their words and charts `rlhf.reports.reward`.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from reward.assessment import Scores, assess
from reward.baselines import baseline_scores
from reward.distribution import describe_scores
from reward.evaluation import PairEvaluation
from reward.normalization import Normalizer
from reward.preferences import Comparison

NOTHING_HELD_OUT: dict[str, Any] = {
    **dict.fromkeys(PairEvaluation.__dataclass_fields__),
    "baselines": {},
}
"""The summary's measurements where there is no held-out split."""


def held_out_summary(
    train: Sequence[Comparison],
    held_out: Sequence[Comparison],
    raw_scores: Scores,
    normalizer: Normalizer,
    *,
    seed: int,
) -> dict[str, Any]:
    """Every measurement of `reward.assessment`, and the scores' distribution before and after the scale.

    Args:
        train: What the trivial baselines learn from.
        held_out: Comparisons that chose nothing; at least one.
        raw_scores: (S,) one score for each response of each held-out comparison, in their order.
        normalizer: The scale that was fitted.
        seed: Seed of the bootstraps.
    """
    found = asdict(
        assess(
            held_out,
            raw_scores,
            baselines=baseline_scores(train, held_out),
            temperature=normalizer.temperature,
            seed=seed,
        )
    )
    return {
        **found.pop("accuracy"),
        **found,
        "distribution": {
            "raw": asdict(describe_scores(held_out, raw_scores)),
            "normalized": asdict(describe_scores(held_out, normalizer(raw_scores))),
        },
    }
