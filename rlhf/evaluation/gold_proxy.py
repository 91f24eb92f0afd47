"""Gold reward over the distance from the start: the law it follows, and where it peaks (Gao et al. 2023).

A policy that climbs a proxy first gets better, then worse. Owns fits and peaks; points come from a run's metrics or
from several models.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from reward.intervals import quantile_interval

Array = NDArray[np.float64]
Form = Literal["rl", "best_of_n"]

FEWEST_POINTS = 5
"""Two more than the fit has unknowns."""
FEWEST_POINTS_FOR_AN_INTERVAL = 10
RESAMPLES = 500
CERTAIN_ERRORS = 3.0
"""Standard errors by which gold must have fallen: the peak is the best of all distances, partly by luck. Of 150 flat
runs of pure noise this called at most one a fall, whether of 14, 30 or 60 steps; two errors called eight."""
_WIDEST_EXPONENT = 50.0


@dataclass(frozen=True, slots=True)
class CurveFit:
    """Reward at distance d = sqrt(KL): start + d (alpha - beta log d), or start + d (alpha - beta d) for best-of-n.

    Gao et al. 2023. They set the start to 0, where it is known; here it is fitted, because a step of a run
    measures it with noise.

    Attributes:
        form: Which of the two.
        start: Reward at d = 0.
        alpha: Rise at first.
        beta: What bends it; without a positive one there is no peak.
    """

    form: Form
    start: float
    alpha: float
    beta: float

    def value(self, distance: Array) -> Array:
        """Fitted reward at each distance."""
        return _features(distance, self.form) @ np.array([self.start, self.alpha, self.beta])

    def peak_distance(self, furthest: float) -> float:
        """Where the derivative is 0: exp(alpha / beta - 1), or alpha / (2 beta), and at least 0.

        A curve that nothing bends down is highest at one of its ends: infinite where that is the far one.

        Args:
            furthest: Largest distance at which the curve is known.
        """
        if self.beta <= 0:
            return math.inf if self.value(np.array([furthest]))[0] > self.start else 0.0
        if self.form == "rl":
            return math.exp(min(self.alpha / self.beta - 1.0, _WIDEST_EXPONENT))
        return max(self.alpha / (2.0 * self.beta), 0.0)


@dataclass(frozen=True, slots=True)
class GoldPeak:
    """Where the gold reward is highest.

    Attributes:
        fit: The curve.
        kl: KL at its peak, nats per answer; infinite where it has none.
        reward: Fitted gold reward there.
        kl_low: Lower end of the 95 % interval of `kl`, points resampled; None with too few of them.
        kl_high: Upper end; may be infinite.
        furthest_kl: Largest KL among the points.
        lost: Fitted gold reward at the peak, minus that at `furthest_kl`; 0 where the peak lies beyond.
        lost_error: Standard error of `lost`, from the points' distance to the fit.
    """

    fit: CurveFit
    kl: float
    reward: float
    kl_low: float | None
    kl_high: float | None
    furthest_kl: float
    lost: float
    lost_error: float

    @property
    def is_passed(self) -> bool:
        """Whether the points go beyond the peak."""
        return self.kl < self.furthest_kl

    @property
    def is_certain(self) -> bool:
        """Whether the interval of the peak, too, ends before the last point, and the fall from it exceeds noise."""
        ends_before = self.kl_high is not None and self.kl_high < self.furthest_kl
        return self.is_passed and ends_before and self.lost > CERTAIN_ERRORS * self.lost_error


def fit_curve(kl: Array, reward: Array, form: Form) -> CurveFit:
    """Least squares of `CurveFit` to points (kl, reward); an estimate of a KL below 0 counts as 0.

    Raises:
        ValueError: fewer than `FEWEST_POINTS` finite points.
    """
    kept = np.isfinite(kl) & np.isfinite(reward)
    if kept.sum() < FEWEST_POINTS:
        raise ValueError(f"{int(kept.sum())} points are too few for a fit of three numbers; give {FEWEST_POINTS}")
    return _fit(_features(_distance(kl[kept]), form), reward[kept], form)


def find_peak(kl: Array, gold: Array, form: Form, *, seed: int = 0) -> GoldPeak:
    """The peak of the fit to points (kl, gold), and how sure it is.

    Args:
        kl: (S,) nats per answer.
        gold: (S,) gold reward.
        form: The curve.
        seed: Seed of the resampling.

    Raises:
        ValueError: fewer than `FEWEST_POINTS` finite points.
    """
    fit = fit_curve(kl, gold, form)
    kept = np.isfinite(kl) & np.isfinite(gold)
    furthest = float(_distance(kl[kept]).max())
    peak = fit.peak_distance(furthest)
    low, high = _peak_interval(_distance(kl[kept]), gold[kept], form, seed)
    ends = fit.value(np.array([min(peak, furthest), furthest]))
    error = _fall_error(_distance(kl[kept]), gold[kept], fit, min(peak, furthest))
    return GoldPeak(fit, _squared(peak), float(ends[0]), low, high, furthest**2, float(ends[0] - ends[1]), error)


def curve_points(fit: CurveFit, furthest_kl: float, count: int = 40) -> tuple[list[float], list[float]]:
    """Distances from 0 to sqrt(furthest_kl), and the fit there, for drawing."""
    distances = np.linspace(0.0, math.sqrt(max(furthest_kl, 0.0)), count)
    return distances.tolist(), fit.value(distances).tolist()


def _fall_error(distance: Array, gold: Array, fit: CurveFit, peak: float) -> float:
    """Standard error of the fitted fall from the peak to the last point, by least squares."""
    features = _features(distance, fit.form)
    spread = float(((gold - fit.value(distance)) ** 2).sum() / max(len(gold) - features.shape[1], 1))
    high, low = _features(np.array([peak, distance.max()]), fit.form)
    contrast = high - low
    return math.sqrt(max(spread * float(contrast @ np.linalg.pinv(features.T @ features) @ contrast), 0.0))


def _peak_interval(distance: Array, gold: Array, form: Form, seed: int) -> tuple[float | None, float | None]:
    """95 % interval of the peak's KL over fits to points drawn with replacement."""
    count = len(distance)
    if count < FEWEST_POINTS_FOR_AN_INTERVAL:
        return None, None
    draws = np.random.default_rng(seed).integers(0, count, size=(RESAMPLES, count))
    features = _features(distance, form)
    furthest = float(distance.max())
    peaks = np.array([_fit(features[rows], gold[rows], form).peak_distance(furthest) for rows in draws])
    # A finite stand-in for "never", because quantiles between two infinities are none.
    never = 1e9
    low, high = quantile_interval(np.minimum(peaks, never))
    return _squared(low if low < never / 2 else math.inf), _squared(high if high < never / 2 else math.inf)


def _fit(features: Array, reward: Array, form: Form) -> CurveFit:
    start, alpha, beta = np.linalg.lstsq(features, reward, rcond=None)[0].tolist()
    return CurveFit(form, start, alpha, beta)


def _features(distance: Array, form: Form) -> Array:
    """(S, 3): what start, alpha and beta multiply."""
    bend = distance**2 if form == "best_of_n" else distance * np.log(np.where(distance > 0, distance, 1.0))
    return np.stack([np.ones_like(distance), distance, -bend], axis=1)


def _distance(kl: Array | Sequence[float]) -> Array:
    return np.sqrt(np.maximum(np.asarray(kl, np.float64), 0.0))


def _squared(distance: float) -> float:
    return distance**2
