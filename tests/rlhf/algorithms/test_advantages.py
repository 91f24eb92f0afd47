"""Token rewards, the end-of-sequence rule and GAE, against values worked by hand and plain loops."""

import math

import pytest
import torch
from torch import Tensor

from rlhf.algorithms.advantages import apply_missing_eos, gae, group_sizes, grpo, rloo, token_rewards

SCORES = torch.tensor([10.0, -3.0])
MASK = torch.tensor([[True, True, False], [True, False, False]])


def _ragged_batch(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([7, 1, 4, 6])
    mask = torch.arange(7) < lengths.unsqueeze(1)
    rewards, values = torch.randn(2, 4, 7, generator=generator, dtype=torch.float64)
    return rewards, values, mask


def _reference_gae(rewards: list[float], values: list[float], gamma: float, lam: float) -> list[float]:
    """The definition, sum over l of (gamma lam)^l delta_{t+l}, for one response without padding."""
    length = len(rewards)
    deltas = [rewards[t] + gamma * (values[t + 1] if t + 1 < length else 0.0) - values[t] for t in range(length)]
    return [sum((gamma * lam) ** (k - t) * deltas[k] for k in range(t, length)) for t in range(length)]


def test_the_score_lands_on_the_last_token_and_kl_on_every_token():
    per_token_kl = torch.tensor([[1.0, 2.0, 50.0], [0.5, math.nan, 50.0]])
    # Row 0: -0.1 * 1, then -0.1 * 2 + 10. Row 1, one token: -0.1 * 0.5 - 3.
    expected = torch.tensor([[-0.1, 9.8, 0.0], [-3.05, 0.0, 0.0]])
    torch.testing.assert_close(token_rewards(SCORES, per_token_kl, MASK, 0.1), expected)


def test_rewards_of_a_response_sum_to_its_penalised_score():
    kl, _, mask = _ragged_batch(0)
    scores = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)
    totals = token_rewards(scores, kl, mask, 0.3).sum(dim=1)
    torch.testing.assert_close(totals, scores - 0.3 * (kl * mask).sum(dim=1))


def test_a_response_of_width_one_takes_score_and_kl_together():
    rewards = token_rewards(torch.tensor([2.0]), torch.tensor([[0.5]]), torch.tensor([[True]]), 2.0)
    assert rewards.tolist() == [[1.0]]


def test_a_response_without_tokens_is_refused_by_row():
    mask = torch.tensor([[True, True, False], [False, False, False]])
    with pytest.raises(ValueError, match=r"mask rows \[1\] select no token"):
        token_rewards(SCORES, torch.zeros(2, 3), mask, 0.1)


def test_scores_that_would_broadcast_are_refused():
    with pytest.raises(ValueError, match=r"scores has shape \(2, 1\)"):
        token_rewards(SCORES.unsqueeze(1), torch.zeros(2, 3), MASK, 0.1)


def test_gae_matches_values_worked_by_hand():
    rewards = torch.tensor([[1.0, 0.0, 2.0], [4.0, 99.0, 99.0]])
    values = torch.tensor([[0.5, 1.0, 3.0], [1.0, 88.0, math.nan]])
    mask = torch.tensor([[True, True, True], [True, False, False]])
    # gamma 0.9, gamma * lam 0.45. Row 0, from the end:
    #   A_2 = 2 + 0 - 3                          = -1
    #   A_1 = 0 + 0.9 * 3 - 1   + 0.45 * -1      = 1.25
    #   A_0 = 1 + 0.9 * 1 - 0.5 + 0.45 * 1.25    = 1.9625
    # Row 1 ends at once: A_0 = 4 - 1 = 3.
    advantages, returns = gae(rewards, values, mask, gamma=0.9, lam=0.5)
    torch.testing.assert_close(advantages, torch.tensor([[1.9625, 1.25, -1.0], [3.0, 0.0, 0.0]]))
    torch.testing.assert_close(returns, torch.tensor([[2.4625, 2.25, 2.0], [4.0, 0.0, 0.0]]))


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (0.99, 0.0), (0.0, 0.7)])
def test_gae_agrees_with_its_definition_on_ragged_rows(gamma: float, lam: float):
    rewards, values, mask = _ragged_batch(1)
    advantages, returns = gae(rewards, values, mask, gamma=gamma, lam=lam)
    for row, length in enumerate(mask.sum(dim=1).tolist()):
        expected = _reference_gae(rewards[row, :length].tolist(), values[row, :length].tolist(), gamma, lam)
        assert advantages[row, :length].tolist() == pytest.approx(expected, abs=1e-12)
        assert returns[row, :length].tolist() == pytest.approx(
            [a + v for a, v in zip(expected, values[row, :length].tolist(), strict=True)], abs=1e-12
        )
        assert advantages[row, length:].eq(0).all()
        assert returns[row, length:].eq(0).all()


def test_the_defaults_are_gamma_one_and_lambda_095():
    rewards, values, mask = _ragged_batch(2)
    torch.testing.assert_close(gae(rewards, values, mask), gae(rewards, values, mask, gamma=1.0, lam=0.95))


def test_lambda_one_returns_are_the_rewards_to_go_whatever_the_critic_says():
    rewards, values, mask = _ragged_batch(3)
    _, returns = gae(rewards, values, mask, lam=1.0)
    rewards_to_go = (rewards * mask).flip(1).cumsum(1).flip(1) * mask
    torch.testing.assert_close(returns, rewards_to_go)


def test_more_padding_and_its_content_change_nothing():
    rewards, values, mask = _ragged_batch(4)
    junk = torch.full((4, 5), math.nan, dtype=torch.float64)
    wide_rewards, wide_values = torch.cat([rewards, junk], dim=1), torch.cat([values, junk], dim=1)
    wide_mask = torch.cat([mask, torch.zeros(4, 5, dtype=torch.bool)], dim=1)
    narrow_results, wide_results = gae(rewards, values, mask), gae(wide_rewards, wide_values, wide_mask)
    for narrow_result, wide_result in zip(narrow_results, wide_results, strict=True):
        assert torch.equal(narrow_result, wide_result[:, :7])
        assert wide_result[:, 7:].eq(0).all()


@pytest.mark.parametrize("width", [0, 1])
def test_gae_of_very_short_batches(width: int):
    rewards, values = torch.full((2, width), 5.0), torch.full((2, width), 2.0)
    advantages, returns = gae(rewards, values, torch.ones(2, width, dtype=torch.bool))
    assert advantages.tolist() == [[3.0] * width] * 2
    assert returns.tolist() == [[5.0] * width] * 2


def test_advantages_and_returns_carry_no_gradient():
    rewards, values, mask = _ragged_batch(5)
    advantages, returns = gae(rewards, values.requires_grad_(), mask)
    assert not advantages.requires_grad
    assert not returns.requires_grad


@pytest.mark.parametrize("name", ["gamma", "lam"])
@pytest.mark.parametrize("number", [-0.1, 1.01, math.nan])
def test_discounts_outside_zero_to_one_are_refused(name: str, number: float):
    with pytest.raises(ValueError, match=f"{name} is {number}"):
        gae(torch.zeros(2, 3), torch.zeros(2, 3), MASK, **{name: number})


@pytest.mark.parametrize("row", [[False, True, True], [True, False, True]])
def test_a_mask_that_is_not_right_padded_is_refused(row: list[bool]):
    mask = torch.tensor([[True, True, True], row])
    with pytest.raises(ValueError, match="right-padded"):
        gae(torch.zeros(2, 3), torch.zeros(2, 3), mask)
    with pytest.raises(ValueError, match="right-padded"):
        token_rewards(SCORES, torch.zeros(2, 3), mask, 0.1)


def test_a_single_response_without_batch_dimension_is_refused():
    with pytest.raises(ValueError, match=r"mask has shape \(3,\)"):
        gae(torch.zeros(3), torch.zeros(3), MASK[0])


# Groups of 2, 3 and 1, their members not side by side.
GROUPED_REWARDS = torch.tensor([1.0, 4.0, 2.0, -3.0, 7.0, 5.0])
GROUP = torch.tensor([2, 0, 2, 0, 1, 0])


def test_rloo_matches_values_worked_by_hand():
    # Group 0: 4, -3, 5. 4 - (-3 + 5) / 2 = 3; -3 - 9 / 2 = -7.5; 5 - 1 / 2 = 4.5. Group 2: 1 - 2 and 2 - 1.
    assert rloo(GROUPED_REWARDS, GROUP).tolist() == [-1.0, 3.0, 1.0, -7.5, 0.0, 4.5]


def test_grpo_matches_values_worked_by_hand():
    # Group 0: mean 2, squares 4 + 25 + 9 = 38, std sqrt(38 / 2). Group 2: mean 1.5, std sqrt(0.5 / 1).
    wide, narrow = math.sqrt(19.0) + 0.5, math.sqrt(0.5) + 0.5
    expected = [-0.5 / narrow, 2 / wide, 0.5 / narrow, -5 / wide, 0.0, 3 / wide]
    torch.testing.assert_close(grpo(GROUPED_REWARDS, GROUP, epsilon=0.5), torch.tensor(expected))
    assert group_sizes(GROUP).tolist() == [2, 3, 2, 3, 1, 3]


def test_centred_grpo_is_a_fixed_share_of_rloo():
    share = (group_sizes(GROUP) - 1) / group_sizes(GROUP)
    torch.testing.assert_close(grpo(GROUPED_REWARDS, GROUP, divide_by_std=False), share * rloo(GROUPED_REWARDS, GROUP))


@pytest.mark.parametrize("estimator", [rloo, grpo], ids=["rloo", "grpo"])
def test_advantages_of_a_group_sum_to_zero_and_know_nothing_of_other_groups_or_of_the_level(estimator):
    advantages = estimator(GROUPED_REWARDS, GROUP)
    sums = torch.zeros(3).index_add(0, GROUP, advantages)
    torch.testing.assert_close(sums, torch.zeros(3), atol=1e-5, rtol=0)
    raised = GROUPED_REWARDS + torch.tensor([10.0, -20.0, 30.0])[GROUP]
    torch.testing.assert_close(estimator(raised, GROUP), advantages, atol=1e-5, rtol=0)
    order = torch.tensor([5, 2, 0, 4, 3, 1])
    torch.testing.assert_close(estimator(GROUPED_REWARDS[order], GROUP[order]), advantages[order])


@pytest.mark.parametrize("estimator", [rloo, grpo], ids=["rloo", "grpo"])
def test_lone_responses_and_groups_of_equal_rewards_teach_nothing(estimator):
    # 0.1 + 0.2 is not 0.3: rounding must not become an advantage of size 1.
    rewards = torch.tensor([0.3, 0.1 + 0.2, 0.3, 8.0])
    assert estimator(rewards, torch.tensor([0, 0, 0, 1])).abs().max() < 1e-3
    assert estimator(torch.zeros(0), torch.zeros(0, dtype=torch.long)).tolist() == []


@pytest.mark.parametrize("estimator", [rloo, grpo], ids=["rloo", "grpo"])
def test_advantages_of_a_group_carry_no_gradient_and_keep_what_is_not_finite_to_themselves(estimator):
    rewards = GROUPED_REWARDS.clone()
    rewards[4] = math.nan
    advantages = estimator(rewards.requires_grad_(), GROUP)
    assert not advantages.requires_grad
    assert torch.isfinite(advantages[GROUP != 1]).all()


def test_rewards_per_token_are_refused_where_one_per_response_is_needed():
    with pytest.raises(ValueError, match=r"rewards has shape \(2, 3\) and group \(2,\)"):
        rloo(torch.zeros(2, 3), torch.zeros(2, dtype=torch.long))


HAS_EOS = torch.tensor([True, False, False])
UNFINISHED_SCORES = torch.tensor([1.0, 2.0, -5.0])


def test_the_penalty_rule_subtracts_from_unfinished_responses_only():
    assert apply_missing_eos(UNFINISHED_SCORES, HAS_EOS, "penalty", value=1.5).tolist() == [1.0, 0.5, -6.5]


def test_the_replace_rule_overwrites_unfinished_responses_only():
    assert apply_missing_eos(UNFINISHED_SCORES, HAS_EOS, "replace", value=-1.0).tolist() == [1.0, -1.0, -1.0]


def test_the_none_rule_leaves_scores_alone():
    assert apply_missing_eos(UNFINISHED_SCORES, HAS_EOS, "none").tolist() == [1.0, 2.0, -5.0]


def test_the_rule_does_not_write_into_its_input():
    scores = UNFINISHED_SCORES.clone()
    apply_missing_eos(scores, HAS_EOS, "replace", value=-1.0)
    assert torch.equal(scores, UNFINISHED_SCORES)


@pytest.mark.parametrize(
    ("rule", "value", "message"),
    [
        ("none", 1.0, "rule 'none' takes none"),
        ("penalty", None, "needs a finite number >= 0"),
        ("penalty", -1.0, "value is -1.0"),
        ("replace", None, "needs a finite number"),
        ("replace", math.nan, "value is nan"),
        ("drop", 1.0, "rule is 'drop'; allowed are none, penalty, replace"),
    ],
)
def test_a_rule_without_a_fitting_value_is_refused(rule, value, message: str):
    with pytest.raises(ValueError, match=message):
        apply_missing_eos(UNFINISHED_SCORES, HAS_EOS, rule, value=value)


def test_a_flag_per_token_is_refused_where_one_per_response_is_needed():
    with pytest.raises(ValueError, match="scores has shape"):
        apply_missing_eos(UNFINISHED_SCORES, HAS_EOS.unsqueeze(1), "none")
