"""KL estimators against values worked by hand and exact expectations; KL control against the published rule."""

import json
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from rlhf.algorithms.kl import (
    AdaptiveKlController,
    FixedKlController,
    KlController,
    estimate_kl,
    kl_k1,
    kl_k2,
    kl_k3,
    sequence_kl,
)

LOG2, LOG4 = math.log(2), math.log(4)
# Token 0 is twice as likely under the policy (d = log 2), token 1 four times less likely (d = -log 4).
LOGPROBS = torch.tensor([[-1.0, -3.0]], dtype=torch.float64)
REFERENCE = torch.tensor([[-1.0 - LOG2, -3.0 + LOG4]], dtype=torch.float64)

EXPECTED = {
    "k1": [LOG2, -LOG4],
    "k2": [LOG2**2 / 2, LOG4**2 / 2],
    # exp(-log 2) - 1 + log 2 and exp(log 4) - 1 - log 4.
    "k3": [LOG2 - 0.5, 3 - LOG4],
}


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_estimators_match_values_worked_by_hand(estimator):
    assert estimate_kl(LOGPROBS, REFERENCE, estimator)[0].tolist() == pytest.approx(EXPECTED[estimator], rel=1e-12)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_estimators_agree_with_a_plain_loop(estimator):
    generator = torch.Generator().manual_seed(3)
    logprobs, reference = -5 * torch.rand(2, 4, 6, generator=generator, dtype=torch.float64)
    formulas = {"k1": lambda d: d, "k2": lambda d: d * d / 2, "k3": lambda d: math.exp(-d) - 1 + d}
    estimated = estimate_kl(logprobs, reference, estimator)
    for row in range(4):
        for t in range(6):
            expected = formulas[estimator](logprobs[row, t].item() - reference[row, t].item())
            assert estimated[row, t].item() == pytest.approx(expected, abs=1e-12)


def test_an_unknown_estimator_is_refused_with_the_choices():
    unknown: Any = "k4"
    with pytest.raises(ValueError, match="estimator is 'k4'; allowed are k1, k2, k3"):
        estimate_kl(LOGPROBS, REFERENCE, unknown)


def _three_outcomes() -> tuple[Tensor, Tensor]:
    logits = torch.tensor([0.3, -0.8, 1.1], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64).log()
    return logits, reference


def _gradient(objective: Tensor, logits: Tensor) -> Tensor:
    return torch.autograd.grad(objective, logits)[0]


@pytest.mark.parametrize("estimator", [kl_k1, kl_k3])
def test_k1_and_k3_are_unbiased(estimator):
    logits, reference = _three_outcomes()
    logprobs = logits.log_softmax(0).detach()
    exact = sum(p * math.log(p / q) for p, q in zip(logprobs.exp().tolist(), reference.exp().tolist(), strict=True))
    assert (logprobs.exp() * estimator(logprobs, reference)).sum().item() == pytest.approx(exact, rel=1e-12)


def test_expected_gradients_are_what_the_docstring_says():
    logits, reference = _three_outcomes()
    logprobs = logits.log_softmax(0)
    sampled = logprobs.exp().detach()  # the sampling weights carry no gradient, as with real samples
    forward = _gradient((logprobs.exp() * (logprobs - reference)).sum(), logits)
    logprobs = logits.log_softmax(0)
    opposite = _gradient((reference.exp() * (reference - logprobs)).sum(), logits)
    expected = {kl_k1: torch.zeros_like(forward), kl_k2: forward, kl_k3: opposite}
    for estimator, gradient in expected.items():
        objective = (sampled * estimator(logits.log_softmax(0), reference)).sum()
        torch.testing.assert_close(_gradient(objective, logits), gradient)


def test_k2_and_k3_are_never_negative_and_zero_at_equality():
    differences = torch.linspace(-4, 4, 81).unsqueeze(0)
    for estimator in (kl_k2, kl_k3):
        assert (estimator(differences, torch.zeros_like(differences)) >= 0).all()
        assert estimator(differences, differences).eq(0).all()


def test_k3_keeps_its_digits_for_small_differences_in_float32():
    # d = 0.001: k3 = d^2/2 - d^3/6 + ... = 4.998334e-07; exp(-d) - 1 + d in float32 is off by several percent.
    difference = torch.tensor([0.001])
    assert kl_k3(difference, torch.zeros(1)).item() == pytest.approx(4.998334e-07, rel=2e-4)


def test_sequence_kl_is_the_sum_over_response_tokens():
    per_token = torch.tensor([[0.5, -0.25, 9.0], [1.5, math.nan, 9.0]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    assert sequence_kl(per_token, mask).tolist() == [0.25, 1.5]


def test_fixed_coefficient_does_not_move():
    controller = FixedKlController(0.05)
    controller.update(1e6, 512)
    assert controller.coefficient == 0.05


def test_adaptive_coefficient_follows_the_published_rule():
    controller = AdaptiveKlController(0.1, target=6.0, horizon=1000)
    # 12 is 100 % above 6: clipped to 0.2; 0.1 * (1 + 0.2 * 50/1000) = 0.101.
    controller.update(12.0, episodes=50)
    assert controller.coefficient == pytest.approx(0.101, rel=1e-12)
    # 6.6 is 10 % above: 0.101 * (1 + 0.1 * 20/1000) = 0.101202.
    controller.update(6.6, episodes=20)
    assert controller.coefficient == pytest.approx(0.101202, rel=1e-12)
    # A negative estimate is clipped to -0.2: 0.101202 * (1 - 0.2 * 100/1000) = 0.09917796.
    controller.update(-1.0, episodes=100)
    assert controller.coefficient == pytest.approx(0.09917796, rel=1e-12)


def test_adaptive_coefficient_rests_on_target_and_obeys_its_own_error_bound():
    controller = AdaptiveKlController(0.1, target=6.0, horizon=1000, max_error=0.5)
    controller.update(6.0, episodes=100)
    assert controller.coefficient == 0.1
    controller.update(60.0, episodes=100)
    assert controller.coefficient == pytest.approx(0.105, rel=1e-12)


@pytest.mark.parametrize(
    ("make", "kl"),
    [(lambda: FixedKlController(0.2), 3.0), (lambda: AdaptiveKlController(0.2, target=6.0, horizon=1000), 9.0)],
    ids=["fixed", "adaptive"],
)
def test_a_restored_controller_continues_like_the_saved_one(make, kl: float):
    straight: KlController = make()
    straight.update(kl, 64)
    saved = json.loads(json.dumps(straight.state_dict()))
    restored: KlController = make()
    restored.load_state_dict(saved)
    for controller in (straight, restored):
        controller.update(2 * kl, 32)
    assert restored.coefficient == straight.coefficient
    assert type(restored.coefficient) is float


@pytest.mark.parametrize("coefficient", [-0.1, math.nan, math.inf])
def test_a_coefficient_that_is_no_penalty_is_refused(coefficient: float):
    with pytest.raises(ValueError, match="coefficient is"):
        FixedKlController(coefficient)


@pytest.mark.parametrize("name", ["coefficient", "target", "horizon", "max_error"])
@pytest.mark.parametrize("value", [0.0, -1.0, math.nan])
def test_adaptive_arguments_must_be_positive(name: str, value: float):
    arguments = {"coefficient": 0.1, "target": 6.0, "horizon": 1000.0, "max_error": 0.2} | {name: value}
    with pytest.raises(ValueError, match=f"{name} is {value}"):
        AdaptiveKlController(**arguments)


@pytest.mark.parametrize("controller", [FixedKlController(0.1), AdaptiveKlController(0.1, target=6.0, horizon=1000)])
def test_a_kl_that_is_not_finite_is_refused_and_changes_nothing(controller: KlController):
    with pytest.raises(ValueError, match="kl is nan"):
        controller.update(math.nan, 8)
    with pytest.raises(ValueError, match="episodes is -1"):
        controller.update(1.0, -1)
    assert controller.coefficient == 0.1


def test_a_horizon_that_could_bring_the_coefficient_to_zero_is_refused():
    controller = AdaptiveKlController(0.1, target=6.0, horizon=100)
    with pytest.raises(ValueError, match="horizon is 100 episodes, but one update brings 500"):
        controller.update(6.0, episodes=500)


@pytest.mark.parametrize("state", [{}, {"coefficient": 0.1, "horizon": 5.0}, {"coefficient": -1.0}])
@pytest.mark.parametrize("controller", [FixedKlController(0.1), AdaptiveKlController(0.1, target=6.0, horizon=1000)])
def test_a_state_that_is_not_a_controllers_is_refused(controller: KlController, state: dict[str, float]):
    with pytest.raises(ValueError, match="state"):
        controller.load_state_dict(state)


def test_an_adaptive_controller_refuses_to_start_from_zero():
    with pytest.raises(ValueError, match="coefficient in the saved state is 0"):
        AdaptiveKlController(0.1, target=6.0, horizon=1000).load_state_dict({"coefficient": 0.0})
