"""The Plackett-Luce loss, against values worked by hand, every ordering of three, and a plain loop."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlhf.algorithms.listwise_losses import plackett_luce_loss
from rlhf.algorithms.preference_losses import pairwise_logistic_loss

Groups = list[list[list[float]]]
"""Per group, the scores of each tie, best tie first."""


def _float64(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def _pairs(*triples: tuple[int, int, int]) -> tuple[Tensor, Tensor, Tensor]:
    winners, losers, groups = torch.tensor(triples, dtype=torch.int64).reshape(-1, 3).unbind(dim=1)
    return winners, losers, groups


def _flatten(groups: Groups) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """Scores in a row, and every pair that is not a tie."""
    triples, start = [], 0
    for number, group in enumerate(groups):
        ends = list(itertools.accumulate((len(tie) for tie in group), initial=start))
        places = [range(*bounds) for bounds in itertools.pairwise(ends)]
        for better, worse in itertools.combinations(places, 2):
            triples += [(winner, loser, number) for winner in better for loser in worse]
        start = ends[-1]
    return _float64(*(score for group in groups for tie in group for score in tie)), _pairs(*triples)


def _slow_loss(groups: Groups) -> float:
    means = []
    for group in groups:
        costs = []
        for place, tie in enumerate(group[:-1]):
            below = sum(math.exp(score) for worse in group[place + 1 :] for score in worse)
            costs += [-math.log(math.exp(score) / (math.exp(score) + below)) for score in tie]
        means.append(sum(costs) / len(costs))
    return sum(means) / len(means)


def test_loss_and_metrics_match_values_worked_by_hand():
    # One group of scores log 4, log 1, log 3, ranked in this order: chosen with 4 / 8, then with 1 / 4.
    scores, pairs = _flatten([[[math.log(4)], [0.0], [math.log(3)]]])
    loss, metrics = plackett_luce_loss(scores, *pairs, group_count=1)
    assert loss.item() == pytest.approx((math.log(2) + math.log(4)) / 2, rel=1e-12)
    assert metrics["accuracy"].item() == pytest.approx(2 / 3)
    assert metrics["margin"].item() == pytest.approx((math.log(4) + math.log(4 / 3) - math.log(3)) / 3)


def test_tied_responses_are_chosen_against_those_below_and_not_against_each_other():
    # 2 and 5 tie above 3: 2 / 5 and 5 / 8. A tie in the last place is no choice: 6 / 10 alone.
    tied_first = _flatten([[[math.log(2), math.log(5)], [math.log(3)]]])
    tied_last = _flatten([[[math.log(6)], [math.log(1), math.log(3)]]])
    assert plackett_luce_loss(tied_first[0], *tied_first[1], group_count=1)[0].item() == pytest.approx(
        (math.log(5 / 2) + math.log(8 / 5)) / 2, rel=1e-12
    )
    assert plackett_luce_loss(tied_last[0], *tied_last[1], group_count=1)[0].item() == pytest.approx(
        math.log(10 / 6), rel=1e-12
    )


def test_the_gradient_at_a_choice_is_the_probability_of_each_alternative():
    scores, pairs = _flatten([[[math.log(4)], [0.0], [math.log(3)]]])
    scores.requires_grad_()
    plackett_luce_loss(scores, *pairs, group_count=1)[0].backward()
    assert scores.grad is not None
    # Choices among 4, 1, 3 and among 1, 3: probability minus one for the chosen, halved by the mean.
    assert scores.grad.tolist() == pytest.approx([-0.25, (1 / 8 - 3 / 4) / 2, (3 / 8 + 3 / 4) / 2], rel=1e-12)


def test_the_probabilities_of_all_orders_add_up_to_one():
    scores = (0.3, -1.2, 2.0)
    total = 0.0
    for order in itertools.permutations(scores):
        flat, pairs = _flatten([[[score] for score in order]])
        total += math.exp(-2 * plackett_luce_loss(flat, *pairs, group_count=1)[0].item())  # two choices, so twice
    assert total == pytest.approx(1.0, rel=1e-12)


_TIE = st.lists(st.floats(-15, 15), min_size=1, max_size=3)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(_TIE, min_size=2, max_size=4), min_size=1, max_size=4))
def test_the_loss_agrees_with_a_plain_loop(groups: Groups):
    scores, pairs = _flatten(groups)
    loss, _ = plackett_luce_loss(scores, *pairs, group_count=len(groups))
    assert loss.item() == pytest.approx(_slow_loss(groups), rel=1e-9, abs=1e-12)


def test_with_two_responses_a_prompt_listwise_is_pairwise():
    scores = _float64(2.0, 1.0, 0.0, 3.0, -1.0, -1.0)
    listwise = plackett_luce_loss(scores, *_pairs((0, 1, 0), (2, 3, 1), (4, 5, 2)), group_count=3)
    torch.testing.assert_close(listwise, pairwise_logistic_loss(scores[0::2], scores[1::2]))


def test_a_groups_weight_multiplies_its_mean():
    groups: Groups = [[[3.0], [1.0], [0.5]], [[-1.0], [2.0]]]
    scores, pairs = _flatten(groups)
    weighted, _ = plackett_luce_loss(scores, *pairs, group_count=2, group_weight=_float64(0.5, 3.0))
    assert weighted.item() == pytest.approx((0.5 * _slow_loss(groups[:1]) + 3 * _slow_loss(groups[1:])) / 2, rel=1e-12)


def test_micro_batches_of_groups_add_up_to_the_minibatch():
    first: Groups = [[[3.0], [1.0, 0.2], [0.5]]]
    second: Groups = [[[-1.0], [2.0]]]
    parts = [plackett_luce_loss(scores, *pairs, group_count=2) for scores, pairs in map(_flatten, (first, second))]
    scores, pairs = _flatten([*first, *second])
    loss, metrics = plackett_luce_loss(scores, *pairs, group_count=2)
    torch.testing.assert_close(parts[0][0] + parts[1][0], loss)
    for name in metrics:
        torch.testing.assert_close(parts[0][1][name] + parts[1][1][name], metrics[name])


def test_gradients_agree_with_finite_differences_and_metrics_carry_none():
    scores, pairs = _flatten([[[3.0], [1.0, 0.2], [0.5]], [[-1.0], [2.0]]])
    scores.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: plackett_luce_loss(x, *pairs, group_count=2)[0], (scores,))
    assert not any(value.requires_grad for value in plackett_luce_loss(scores, *pairs, group_count=2)[1].values())


def test_scores_of_any_size_stay_finite_and_exact():
    scores = torch.tensor([-1e4, 1e4, 0.0], requires_grad=True)
    loss, _ = plackett_luce_loss(scores, *_pairs((0, 1, 0), (0, 2, 0), (1, 2, 0)), group_count=1)
    loss.backward()
    assert loss.item() == 1e4  # 2e4 for the first choice, 0 for the second
    assert scores.grad is not None
    assert scores.grad.tolist() == [-0.5, 0.5, 0.0]


def test_no_pairs_contribute_nothing_and_a_bad_shape_is_refused():
    loss, metrics = plackett_luce_loss(_float64(1.0, 2.0), *_pairs(), group_count=3)
    assert [loss.item(), *(value.item() for value in metrics.values())] == [0.0, 0.0, 0.0]
    winners, losers, groups = _pairs((0, 1, 0), (0, 2, 0))
    with pytest.raises(ValueError, match="loser_index"):
        plackett_luce_loss(torch.zeros(3), winners, losers[:1], groups, group_count=1)
    with pytest.raises(ValueError, match="group_count is 0"):
        plackett_luce_loss(torch.zeros(3), winners, losers, groups, group_count=0)
