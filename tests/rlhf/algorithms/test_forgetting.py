"""Summaries of a score matrix, and penalties on weights: values worked by hand."""

import pytest
import torch

from rlhf.algorithms.forgetting import average_score, backward_transfer, forgetting

SCORES = torch.tensor([[0.8, 0.1, 0.2], [0.9, 0.7, 0.3], [0.5, 0.75, 0.6]])


def test_the_average_is_that_of_the_last_row() -> None:
    assert average_score(SCORES) == pytest.approx((0.5 + 0.75 + 0.6) / 3)


def test_forgetting_is_measured_from_the_best_earlier_score() -> None:
    # 0.9 - 0.5 and 0.7 - 0.75: the second task is better at the end than when it was learned.
    assert forgetting(SCORES) == pytest.approx((0.4 - 0.05) / 2)


def test_the_best_earlier_score_may_be_older_than_the_task() -> None:
    scores = torch.tensor([[0.5, 0.9, 0.0], [0.4, 0.6, 0.0], [0.3, 0.5, 1.0]])
    assert forgetting(scores) == pytest.approx((0.2 + 0.4) / 2)


def test_backward_transfer_is_measured_from_the_moment_of_learning() -> None:
    # 0.5 - 0.8 and 0.75 - 0.7.
    assert backward_transfer(SCORES) == pytest.approx((-0.3 + 0.05) / 2)


def test_one_task_has_nothing_to_forget() -> None:
    alone = torch.tensor([[0.4]])
    assert (average_score(alone), forgetting(alone), backward_transfer(alone)) == (pytest.approx(0.4), 0.0, 0.0)


@pytest.mark.parametrize("shape", [(2, 3), (0, 0), (4,)])
def test_a_matrix_that_is_not_square_is_refused(shape: tuple[int, ...]) -> None:
    for measure in (average_score, forgetting, backward_transfer):
        with pytest.raises(ValueError, match="a row and a column for each task"):
            measure(torch.zeros(shape))
