"""Pairwise and K-wise preference losses, against values worked by hand and plain loops."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlhf.algorithms.preference_losses import centering_penalty, pairwise_logistic_loss, ranked_pairs_loss


def _cost(difference: float) -> float:
    """-log sigmoid(difference)."""
    return math.log1p(math.exp(-difference))


def _sigmoid(difference: float) -> float:
    return 1 / (1 + math.exp(-difference))


def _float64(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def _pairs(*triples: tuple[int, int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """(winner, loser, group) triples as the three index tensors."""
    winners, losers, groups = torch.tensor(triples, dtype=torch.int64).reshape(-1, 3).unbind(dim=1)
    return winners, losers, groups


def test_pairwise_loss_and_metrics_match_values_worked_by_hand():
    loss, metrics = pairwise_logistic_loss(_float64(2.0, 0.0, 1.0), _float64(1.0, 3.0, 1.0))
    # Differences 1, -3, 0: right, wrong, and a tie that counts one half.
    assert loss.item() == pytest.approx((_cost(1) + _cost(-3) + math.log(2)) / 3, rel=1e-12)
    assert metrics["accuracy"].item() == pytest.approx(0.5)
    assert metrics["margin"].item() == pytest.approx(-2 / 3)


def test_a_margin_moves_the_loss_but_not_the_metrics():
    chosen, rejected = _float64(2.0, 0.0), _float64(1.0, 3.0)
    loss, metrics = pairwise_logistic_loss(chosen, rejected, margin=_float64(0.5, 0.25))
    assert loss.item() == pytest.approx((_cost(0.5) + _cost(-3.25)) / 2, rel=1e-12)
    assert metrics == pairwise_logistic_loss(chosen, rejected)[1]


def test_pairwise_gradient_is_what_the_wrong_side_of_the_sigmoid_leaves():
    chosen = _float64(2.0, 0.0).requires_grad_()
    pairwise_logistic_loss(chosen, _float64(1.0, 3.0))[0].backward()
    assert chosen.grad is not None
    assert chosen.grad.tolist() == pytest.approx([-_sigmoid(-1) / 2, -_sigmoid(3) / 2], rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scores_of_any_size_stay_finite_and_exact(dtype: torch.dtype):
    chosen = torch.tensor([1e4, -1e4], dtype=dtype, requires_grad=True)
    rejected = torch.zeros(2, dtype=dtype)
    for x, expected in ((chosen[:1], 0.0), (chosen[1:], 1e4)):
        assert pairwise_logistic_loss(x, rejected[:1])[0].item() == expected
    pairwise_logistic_loss(chosen, rejected)[0].backward()
    assert chosen.grad is not None
    assert chosen.grad.tolist() == [0.0, -0.5]


def test_a_small_loss_keeps_its_digits():
    # log(1 + e^-30) = 9.36e-14 is lost where the sigmoid is rounded to 1 before the logarithm.
    assert pairwise_logistic_loss(torch.tensor([30.0]), torch.zeros(1))[0].item() == pytest.approx(_cost(30), rel=1e-5)


def test_ranked_loss_metrics_and_gradient_match_values_worked_by_hand():
    scores = _float64(3.0, 1.0, 0.0, 2.0, 5.0).requires_grad_()
    # Group 0 ranks 0 > 1 > 2: differences 2, 3, 1. Group 1 ranks 3 > 4: difference -3.
    pairs = _pairs((0, 1, 0), (0, 2, 0), (1, 2, 0), (3, 4, 1))
    loss, metrics = ranked_pairs_loss(scores, *pairs, group_count=2)
    assert loss.item() == pytest.approx(((_cost(2) + _cost(3) + _cost(1)) / 3 + _cost(-3)) / 2, rel=1e-12)
    # Group means first: accuracy (1 + 0) / 2, margin (2 - 3) / 2; over the four pairs it would be 0.75 and 0.75.
    assert metrics["accuracy"].item() == pytest.approx(0.5)
    assert metrics["margin"].item() == pytest.approx(-0.5)
    pull = [_sigmoid(-2) / 6, _sigmoid(-3) / 6, _sigmoid(-1) / 6, _sigmoid(3) / 2]
    expected = [-pull[0] - pull[1], pull[0] - pull[2], pull[1] + pull[2], -pull[3], pull[3]]
    gradient = torch.autograd.grad(loss, scores)[0]
    assert gradient.tolist() == pytest.approx(expected, rel=1e-12)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.floats(-20, 20), min_size=2, max_size=5), min_size=1, max_size=4))
def test_ranked_loss_agrees_with_a_plain_loop(groups: list[list[float]]):
    triples, group_costs, group_accuracies, start = [], [], [], 0
    for group, scores in enumerate(groups):
        ranked = list(itertools.combinations(range(len(scores)), 2))  # earlier in the list is better
        triples += [(start + winner, start + loser, group) for winner, loser in ranked]
        differences = [scores[winner] - scores[loser] for winner, loser in ranked]
        group_costs.append(sum(map(_cost, differences)) / len(ranked))
        group_accuracies.append(sum(1.0 if d > 0 else 0.5 if d == 0 else 0.0 for d in differences) / len(ranked))
        start += len(scores)
    loss, metrics = ranked_pairs_loss(_float64(*itertools.chain(*groups)), *_pairs(*triples), group_count=len(groups))
    assert loss.item() == pytest.approx(sum(group_costs) / len(groups), rel=1e-9)
    assert metrics["accuracy"].item() == pytest.approx(sum(group_accuracies) / len(groups), rel=1e-9)


def test_with_two_responses_a_prompt_ranked_is_pairwise():
    scores = _float64(2.0, 1.0, 0.0, 3.0, -1.0, -1.0)
    ranked = ranked_pairs_loss(scores, *_pairs((0, 1, 0), (2, 3, 1), (4, 5, 2)), group_count=3)
    torch.testing.assert_close(ranked, pairwise_logistic_loss(scores[0::2], scores[1::2]))


def test_the_order_of_pairs_and_the_names_of_groups_do_not_matter():
    scores = _float64(3.0, 1.0, 0.0, 2.0, 5.0)
    ordered = ranked_pairs_loss(scores, *_pairs((0, 1, 0), (0, 2, 0), (1, 2, 0), (3, 4, 1)), group_count=2)
    shuffled = ranked_pairs_loss(scores, *_pairs((1, 2, 1), (3, 4, 0), (0, 1, 1), (0, 2, 1)), group_count=2)
    torch.testing.assert_close(ordered, shuffled)


def test_micro_batches_of_groups_add_up_to_the_minibatch_in_loss_gradient_and_metrics():
    parameter = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    features = _float64(3.0, 1.0, 0.0, 2.0, 5.0)

    def run(scores: Tensor, *triples: tuple[int, int, int]) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        loss, metrics = ranked_pairs_loss(parameter * scores, *_pairs(*triples), group_count=2)
        return loss, torch.autograd.grad(loss, parameter)[0], metrics

    whole = run(features, (0, 1, 0), (0, 2, 0), (1, 2, 0), (3, 4, 1))
    parts = (run(features[:3], (0, 1, 0), (0, 2, 0), (1, 2, 0)), run(features[3:], (0, 1, 0)))
    torch.testing.assert_close(parts[0][0] + parts[1][0], whole[0])
    torch.testing.assert_close(parts[0][1] + parts[1][1], whole[1])
    for name in whole[2]:
        torch.testing.assert_close(parts[0][2][name] + parts[1][2][name], whole[2][name])


def test_an_empty_micro_batch_of_groups_contributes_nothing():
    loss, metrics = ranked_pairs_loss(_float64(1.0, 2.0), *_pairs(), group_count=3)
    assert loss.item() == 0.0
    assert all(value.item() == 0.0 for value in metrics.values())


def test_ranked_loss_stays_finite_for_scores_of_any_size():
    scores = torch.tensor([1e4, -1e4, 0.0], requires_grad=True)
    loss, _ = ranked_pairs_loss(scores, *_pairs((1, 0, 0), (2, 0, 0)), group_count=1)
    loss.backward()
    assert loss.item() == 1.5e4
    assert scores.grad is not None
    assert scores.grad.tolist() == [1.0, -0.5, -0.5]


def test_gradients_agree_with_finite_differences():
    scores = _float64(3.0, 1.0, 0.0, 2.0, 5.0).requires_grad_()
    pairs = _pairs((0, 1, 0), (0, 2, 0), (2, 1, 0), (3, 4, 1))
    assert torch.autograd.gradcheck(lambda x: ranked_pairs_loss(x, *pairs, group_count=2)[0], (scores,))
    assert torch.autograd.gradcheck(lambda x: pairwise_logistic_loss(x[:2], x[2:4])[0], (scores,))


def test_metrics_carry_no_gradient():
    scores = _float64(1.0, 2.0).requires_grad_()
    _, pairwise = pairwise_logistic_loss(scores[:1], scores[1:])
    _, ranked = ranked_pairs_loss(scores, *_pairs((0, 1, 0)), group_count=1)
    assert not any(value.requires_grad for value in (*pairwise.values(), *ranked.values()))


def test_no_pairs_are_refused_where_the_mean_would_be_nan():
    with pytest.raises(ValueError, match="chosen has no element"):
        pairwise_logistic_loss(torch.zeros(0), torch.zeros(0))


@pytest.mark.parametrize("rejected", [torch.zeros(3), torch.zeros(2, 1)])
def test_scores_that_do_not_pair_up_are_refused(rejected: Tensor):
    with pytest.raises(ValueError, match="rejected"):
        pairwise_logistic_loss(torch.zeros(2), rejected)


def test_a_margin_of_another_shape_is_refused():
    with pytest.raises(ValueError, match="margin"):
        pairwise_logistic_loss(torch.zeros(2), torch.zeros(2), margin=torch.zeros(1))


def test_ranked_arguments_that_do_not_fit_are_refused():
    pairs = _pairs((0, 1, 0), (0, 2, 0))
    with pytest.raises(ValueError, match="group_count is 0"):
        ranked_pairs_loss(torch.zeros(3), *pairs, group_count=0)
    with pytest.raises(ValueError, match="group_of_pair"):
        ranked_pairs_loss(torch.zeros(3), pairs[0], pairs[1], pairs[2][:1], group_count=1)


def test_a_group_beyond_the_count_is_refused_not_ignored():
    with pytest.raises((IndexError, RuntimeError)):
        ranked_pairs_loss(torch.zeros(3), *_pairs((0, 1, 0), (0, 2, 1)), group_count=1)


def _cross_entropy(difference: float, target: float) -> float:
    return target * _cost(difference) + (1 - target) * _cost(-difference)


def test_targets_margins_and_smoothing_match_values_worked_by_hand():
    scores = _float64(3.0, 1.0, 0.5, -2.0)
    pairs = _pairs((0, 1, 0), (0, 2, 0), (1, 2, 0), (2, 3, 1))
    # Differences 2, 2.5, 0.5 and 2.5; the third pair is a tie. Leads after the margins: 1.75, 1.5, 0.5, 2.5.
    loss, metrics = ranked_pairs_loss(
        scores,
        *pairs,
        group_count=2,
        target=_float64(1.0, 0.8, 0.5, 1.0),
        margin=_float64(0.25, 1.0, 0.0, 0.0),
        label_smoothing=0.1,
    )
    costs = [(1.75, 0.9), (1.5, 0.8 * 0.9 + 0.2 * 0.1), (0.5, 0.5), (2.5, 0.9)]
    terms = [_cross_entropy(lead, target) for lead, target in costs]
    assert loss.item() == pytest.approx((sum(terms[:3]) / 3 + terms[3]) / 2, rel=1e-12)
    # Metrics are of the scores, and leave the tie out.
    assert metrics["accuracy"].item() == pytest.approx(1.0)
    assert metrics["margin"].item() == pytest.approx(((2 + 2.5) / 2 + 2.5) / 2)


def test_a_tie_pulls_two_scores_together():
    scores = _float64(1.0, -0.5).requires_grad_()
    loss, _ = ranked_pairs_loss(scores, *_pairs((0, 1, 0)), group_count=1, target=_float64(0.5))
    loss.backward()
    assert scores.grad is not None
    assert scores.grad.tolist() == pytest.approx([_sigmoid(1.5) - 0.5, 0.5 - _sigmoid(1.5)], rel=1e-12)


def test_a_soft_label_is_cheapest_where_the_scores_say_the_same():
    pairs, target = _pairs((0, 1, 0)), _float64(0.7)
    leads = [math.log(0.7 / 0.3) + shift for shift in (-0.1, 0.0, 0.1)]
    losses = [ranked_pairs_loss(_float64(d, 0), *pairs, group_count=1, target=target)[0].item() for d in leads]
    assert losses[1] == min(losses)
    assert losses[1] == pytest.approx(-0.7 * math.log(0.7) - 0.3 * math.log(0.3))


def test_the_smoothed_loss_of_a_certain_label_has_a_floor_at_its_doubt():
    pairs = _pairs((0, 1, 0))
    best, _ = ranked_pairs_loss(_float64(math.log(9), 0.0), *pairs, group_count=1, label_smoothing=0.1)
    further, _ = ranked_pairs_loss(_float64(6.0, 0.0), *pairs, group_count=1, label_smoothing=0.1)
    assert best.item() == pytest.approx(-0.9 * math.log(0.9) - 0.1 * math.log(0.1))
    assert further > best


def test_a_groups_weight_multiplies_its_mean_and_no_metric():
    scores = _float64(3.0, 1.0, 0.0, 2.0, 5.0)
    pairs = _pairs((0, 1, 0), (0, 2, 0), (1, 2, 0), (3, 4, 1))
    loss, metrics = ranked_pairs_loss(scores, *pairs, group_count=2, group_weight=_float64(0.25, 3.0))
    expected = (0.25 * (_cost(2) + _cost(3) + _cost(1)) / 3 + 3.0 * _cost(-3)) / 2
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    assert metrics == ranked_pairs_loss(scores, *pairs, group_count=2)[1]


def test_gradients_with_targets_margins_and_weights_agree_with_finite_differences():
    scores = _float64(3.0, 1.0, 0.0, 2.0, 5.0).requires_grad_()
    pairs = _pairs((0, 1, 0), (0, 2, 0), (2, 1, 0), (3, 4, 1))
    options: dict[str, Tensor] = {
        "target": _float64(1.0, 0.5, 0.8, 1.0),
        "margin": _float64(0.3, 0.0, 0.1, 1.0),
        "group_weight": _float64(2.0, 0.5),
    }
    assert torch.autograd.gradcheck(
        lambda x: ranked_pairs_loss(x, *pairs, group_count=2, label_smoothing=0.2, **options)[0], (scores,)
    )


def test_uncertain_labels_stay_finite_for_scores_of_any_size():
    scores = torch.tensor([1e4, -1e4], requires_grad=True)
    loss, _ = ranked_pairs_loss(scores, *_pairs((0, 1, 0)), group_count=1, target=torch.tensor([0.75]))
    loss.backward()
    assert loss.item() == 5e3
    assert scores.grad is not None
    assert scores.grad.tolist() == [0.25, -0.25]


def test_smoothing_and_numbers_of_pairs_that_do_not_fit_are_refused():
    pairs = _pairs((0, 1, 0), (0, 2, 0))
    with pytest.raises(ValueError, match=r"label_smoothing is 0\.5"):
        ranked_pairs_loss(torch.zeros(3), *pairs, group_count=1, label_smoothing=0.5)
    with pytest.raises(ValueError, match="target"):
        ranked_pairs_loss(torch.zeros(3), *pairs, group_count=1, target=torch.ones(1))
    with pytest.raises(ValueError, match="margin"):
        ranked_pairs_loss(torch.zeros(3), *pairs, group_count=1, margin=torch.zeros(2, 1))


def test_the_centering_penalty_matches_values_worked_by_hand_and_moves_levels_only():
    scores = _float64(2.0, 1.0, 3.0, -1.0, 0.5).requires_grad_()
    group = torch.tensor([0, 0, 1, 1, 1])
    penalty = centering_penalty(scores, group, group_count=2)
    # Group means 1.5 and 2.5 / 3: for the pair (2 + 1)^2.
    assert penalty.item() == pytest.approx((3.0**2 + (5 / 3) ** 2) / 2, rel=1e-12)
    penalty.backward()
    assert scores.grad is not None
    assert scores.grad.tolist() == pytest.approx([3.0, 3.0, 10 / 9, 10 / 9, 10 / 9], rel=1e-12)


def test_shares_of_the_centering_penalty_add_up():
    scores, group = _float64(2.0, 1.0, 3.0, -1.0, 0.5), torch.tensor([0, 0, 1, 1, 1])
    parts = [centering_penalty(scores[group == g], torch.zeros(count).long(), 2) for g, count in ((0, 2), (1, 3))]
    torch.testing.assert_close(parts[0] + parts[1], centering_penalty(scores, group, 2))
    with pytest.raises(ValueError, match="group_of_score"):
        centering_penalty(scores, group[:2], 2)
