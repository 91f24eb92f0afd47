"""The win rate that would be seen if both models' answers were of equal length.

Judges, people among them, like long answers; a model may win by length alone. Owns the regression that takes this out.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from reward.intervals import quantile_interval
from rlhf.evaluation.win_rates import Interval

Array = NDArray[np.float64]

PRIOR_STD = 5.0
"""Spread of a Gaussian prior on both coefficients: without one, a model that always wins has no finite estimate. With
100 even prompts it pulls the intercept towards 0 by a sixth of a percent."""
_MOST_ITERATIONS = 50
_LONGEST_STEP = 2.0
_CONVERGED = 1e-9
_NUMBERS_AT_ONCE = 2_000_000


def length_controlled_win_rate(
    outcomes: Array, length_differences: Array, prompt_ids: Sequence[str], *, resamples: int, seed: int
) -> Interval:
    """sigmoid(theta) of the logistic regression P(win) = sigmoid(theta + phi * tanh(d / std(d))).

    d is the candidate's length minus the baseline's, so theta is the log-odds of a win at equal length (after Dubois et
    al. 2024; their term for the difficulty of each instruction is left out, because it is fitted on the
    answers of many models). A tie is half a win. Each prompt weighs once, and the interval resamples prompts.

    Args:
        outcomes: (B,) 1, 0.5 or 0; NaN is left out.
        length_differences: (B,) candidate minus baseline, tokens.
        prompt_ids: (B,) prompt of each pair.
        resamples: Bootstrap resamples.
        seed: Seed of the resampling.

    Raises:
        ValueError: if no outcome is finite.
    """
    valid = np.isfinite(outcomes)
    if not valid.any():
        raise ValueError("judges: no pair of answers has an outcome; a win rate needs at least one")
    kept = [prompt_id for prompt_id, is_valid in zip(prompt_ids, valid.tolist(), strict=True) if is_valid]
    _, clusters, counts = np.unique(kept, return_inverse=True, return_counts=True)
    weights = 1.0 / counts[clusters]
    feature, wins = _bounded(length_differences[valid]), outcomes[valid]
    mean = _sigmoid(_intercepts(weights[None], feature, wins))[0]
    generator, draws = np.random.default_rng(seed), list[Array]()
    rows_at_once = max(1, _NUMBERS_AT_ONCE // len(wins))
    for start in range(0, resamples, rows_at_once):
        rows = min(rows_at_once, resamples - start)
        times = generator.multinomial(len(counts), np.full(len(counts), 1 / len(counts)), size=rows)
        draws.append(_sigmoid(_intercepts(times[:, clusters] * weights, feature, wins)))
    low, high = quantile_interval(np.concatenate(draws))
    return Interval(float(mean), low, high)


def _bounded(differences: Array) -> Array:
    """tanh(d / std(d)), so that one very long answer does not decide the slope; 0 where all differences are equal."""
    spread = differences.std()
    # Equal differences cannot tell length from quality; the prior then leaves the slope at 0.
    return np.tanh(differences / spread) if spread > 0 else np.zeros_like(differences)


def _intercepts(weights: Array, feature: Array, wins: Array) -> Array:
    """(R,) theta of R weighted regressions at once, by Newton's method with steps of bounded length.

    Args:
        weights: (R, Q).
        feature: (Q,).
        wins: (Q,) in [0, 1].
    """
    precision = PRIOR_STD**-2
    theta, phi = np.zeros(len(weights)), np.zeros(len(weights))
    for _ in range(_MOST_ITERATIONS):
        chance = _sigmoid(theta[:, None] + phi[:, None] * feature)
        residual, curvature = weights * (wins - chance), weights * chance * (1.0 - chance)
        slope = np.stack([residual.sum(1) - precision * theta, residual @ feature - precision * phi])
        a, b, c = curvature.sum(1) + precision, curvature @ feature, curvature @ feature**2 + precision
        step = np.stack([c * slope[0] - b * slope[1], a * slope[1] - b * slope[0]]) / (a * c - b * b)
        step *= np.minimum(1.0, _LONGEST_STEP / np.maximum(np.linalg.norm(step, axis=0), _CONVERGED))
        theta, phi = theta + step[0], phi + step[1]
        if np.abs(step).max() < _CONVERGED:
            break
    return theta


def _sigmoid(values: Array) -> Array:
    return 0.5 * (1.0 + np.tanh(0.5 * values))
