"""KL divergence from the reference: per-token estimators, nats per sequence, and the coefficient's control.

Owns the estimators and the fixed and adaptive coefficient. Does not turn KL into rewards (see `advantages`).

All estimators see tokens y_t sampled from the policy and use d_t = log pi(y_t) - log pi_ref(y_t), in nats per token
(Schulman 2020, "Approximating KL divergence", http://joschu.net/blog/kl-approx.html):

    k1 = d                  unbiased, high variance, may be negative
    k2 = d^2 / 2            biased, low variance, never negative
    k3 = exp(-d) - 1 + d    unbiased, low variance, never negative

As values (in the reward, in a metric) all three estimate KL(pi || pi_ref). As loss terms they are not interchangeable:
on samples of the policy itself the expected gradient of k1 is zero, that of k2 is the gradient of KL(pi || pi_ref), and
that of k3 is the gradient of the opposite direction, KL(pi_ref || pi) (Tang & Munos 2025, arXiv:2506.09477).
"""

import math
from collections.abc import Mapping
from typing import Literal, Protocol

import torch
from torch import Tensor

from rlhf.algorithms.masked import masked_sum

KlEstimator = Literal["k1", "k2", "k3"]


def kl_k1(logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """Log-ratio d = log pi - log pi_ref, nats per token; unbiased, may be negative (Schulman 2020).

    Args:
        logprobs: (B, R) log-probabilities of the sampled tokens under the policy.
        reference_logprobs: (B, R) the same under the reference.
    """
    return logprobs - reference_logprobs


def kl_k2(logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """Half the square, d^2 / 2 with d = log pi - log pi_ref, nats per token; biased, never negative (Schulman 2020).

    Args:
        logprobs: (B, R) log-probabilities of the sampled tokens under the policy.
        reference_logprobs: (B, R) the same under the reference.
    """
    return 0.5 * (logprobs - reference_logprobs).square()


def kl_k3(logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """Excess exp(-d) - 1 + d with d = log pi - log pi_ref, nats per token; unbiased, never negative.

    (Schulman 2020: k1 with the control variate exp(-d) - 1, whose mean on the policy's samples is 0.)

    Grows as exp(-d) where the reference likes a token much better than the policy does; it is not truncated here.

    Args:
        logprobs: (B, R) log-probabilities of the sampled tokens under the policy.
        reference_logprobs: (B, R) the same under the reference.
    """
    log_ratio = reference_logprobs - logprobs
    # expm1 keeps the digits that exp(x) - 1 loses near x = 0, where almost all tokens are.
    return torch.expm1(log_ratio) - log_ratio


def estimate_kl(logprobs: Tensor, reference_logprobs: Tensor, estimator: KlEstimator) -> Tensor:
    """Per-token KL(pi || pi_ref) by the named estimator, nats per token.

    Args:
        logprobs: (B, R) log-probabilities of the sampled tokens under the policy.
        reference_logprobs: (B, R) the same under the reference.
        estimator: "k1" (the default of the RLHF reward), "k2" or "k3"; see the module's docstring.

    Raises:
        ValueError: if the estimator is unknown.
    """
    estimators = {"k1": kl_k1, "k2": kl_k2, "k3": kl_k3}
    if estimator not in estimators:
        raise ValueError(f"estimator is {estimator!r}; allowed are {', '.join(estimators)}: choose one of them")
    return estimators[estimator](logprobs, reference_logprobs)


def sequence_kl(per_token_kl: Tensor, mask: Tensor) -> Tensor:
    """Sum of the per-token KL over each response: (B,), nats per sequence.

    Args:
        per_token_kl: (B, R) nats per token.
        mask: (B, R) bool, True selects response tokens.
    """
    return masked_sum(per_token_kl, mask, dim=1)


class KlController(Protocol):
    """What gives the KL coefficient of the reward, and learns from the KL that came of it."""

    @property
    def coefficient(self) -> float:
        """Reward per nat of KL."""
        ...

    def update(self, kl: float, episodes: int) -> None:
        """Take in the mean KL (nats per sequence) measured on `episodes` new responses."""
        ...

    def state_dict(self) -> dict[str, float]:
        """What a resumed run needs, as plain floats."""
        ...

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Continue where the controller that gave `state` stood."""
        ...


class FixedKlController:
    """A constant KL coefficient."""

    def __init__(self, coefficient: float) -> None:
        """Set the constant.

        Args:
            coefficient: reward per nat of KL; 0 switches the penalty off.

        Raises:
            ValueError: if the coefficient is negative or not finite.
        """
        if not (math.isfinite(coefficient) and coefficient >= 0):
            raise ValueError(f"coefficient is {coefficient}; it must be finite and >= 0: use 0 for no KL penalty")
        self._coefficient = float(coefficient)

    @property
    def coefficient(self) -> float:
        """Reward per nat of KL."""
        return self._coefficient

    def update(self, kl: float, episodes: int) -> None:
        """Refuse what the adaptive controller would refuse; change nothing."""
        _require_measurement(kl, episodes)

    def state_dict(self) -> dict[str, float]:
        """{"coefficient": float}."""
        return {"coefficient": self._coefficient}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Take over the saved coefficient.

        Raises:
            ValueError: if `state` is not a controller's state.
        """
        self._coefficient = _read_coefficient(state)


class AdaptiveKlController:
    """A KL coefficient that steers the measured KL towards a target (Ziegler et al. 2019, section 2.2).

        error       = clip((KL - target) / target, -max_error, max_error)
        coefficient = coefficient * (1 + error * episodes / horizon)

    The paper writes a fixed gain K = 0.1 per update; its code uses episodes / horizon, as here, so that the speed does
    not depend on how many episodes a step holds.
    """

    def __init__(self, coefficient: float, target: float, horizon: float, max_error: float = 0.2) -> None:
        """Set the start and the aim.

        Args:
            coefficient: initial reward per nat of KL.
            target: KL to hold, nats per sequence.
            horizon: episodes (responses) over which a relative error of 1 would change the coefficient by 100 %.
            max_error: bound on the relative error.

        Raises:
            ValueError: if an argument is not finite and > 0.
        """
        arguments = {"coefficient": coefficient, "target": target, "horizon": horizon, "max_error": max_error}
        for name, value in arguments.items():
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} is {value}; it must be finite and > 0: or use a fixed KL coefficient")
        self._coefficient = float(coefficient)
        self._target = float(target)
        self._horizon = float(horizon)
        self._max_error = float(max_error)

    @property
    def coefficient(self) -> float:
        """Reward per nat of KL."""
        return self._coefficient

    def update(self, kl: float, episodes: int) -> None:
        """Move the coefficient by the error of `kl`.

        Args:
            kl: mean KL of the new responses, nats per sequence; a sampled k1 mean may be negative.
            episodes: responses since the last update.

        Raises:
            ValueError: if `kl` is not finite, `episodes` is negative, or one update could bring the coefficient to 0 or
                below (max_error * episodes >= horizon).
        """
        _require_measurement(kl, episodes)
        if self._max_error * episodes >= self._horizon:
            raise ValueError(
                f"horizon is {self._horizon:g} episodes, but one update brings {episodes}; it must exceed max_error * "
                f"episodes = {self._max_error * episodes:g}, or the coefficient could reach 0: raise horizon"
            )
        error = min(max(float(kl) / self._target - 1.0, -self._max_error), self._max_error)
        self._coefficient *= 1.0 + error * episodes / self._horizon

    def state_dict(self) -> dict[str, float]:
        """{"coefficient": float}; target, horizon and max_error belong to the config."""
        return {"coefficient": self._coefficient}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Continue from the saved coefficient.

        Raises:
            ValueError: if `state` is not a controller's state, or its coefficient is 0 and could never move.
        """
        coefficient = _read_coefficient(state)
        if coefficient == 0:
            raise ValueError("coefficient in the saved state is 0; an adaptive one must be > 0: start it afresh")
        self._coefficient = coefficient


def _require_measurement(kl: float, episodes: int) -> None:
    if not math.isfinite(kl):
        raise ValueError(f"kl is {kl}; it must be finite (nats per sequence): look for NaN in the log-probabilities")
    if episodes < 0:
        raise ValueError(f"episodes is {episodes}; it must be >= 0: pass the number of new responses")


def _read_coefficient(state: Mapping[str, float]) -> float:
    if set(state) != {"coefficient"}:
        raise ValueError(
            f"KL controller state has keys {sorted(state)}; it must have 'coefficient' alone: load its own"
        )
    coefficient = float(state["coefficient"])
    if not (math.isfinite(coefficient) and coefficient >= 0):
        raise ValueError(f"coefficient in the saved state is {coefficient}; it must be finite and >= 0: start afresh")
    return coefficient
