"""Label scores, calibration, ensembles and word searches against values worked by hand."""

import math

import pytest
import torch

from rlhf.algorithms.label_scores import calibrated, combined, first_order_changes, label_scores, likelihood_ratios


def logs(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64).log()


def test_the_score_of_a_label_is_the_mean_log_prob_of_its_words() -> None:
    scores = label_scores(logs([0.5, 0.2, 0.2, 0.1]), [[0], [1, 3]])
    assert scores[0].tolist() == pytest.approx([math.log(0.5), (math.log(0.2) + math.log(0.1)) / 2])


def test_calibration_divides_by_the_mean_content_free_distribution() -> None:
    # q = (0.8, 0.2) and p = (0.6, 0.4): p / q = (0.75, 2), normalised (3/11, 8/11).
    found = calibrated(logs([0.6, 0.4]), logs([0.9, 0.1], [0.7, 0.3]))
    assert found[0].exp().tolist() == pytest.approx([3 / 11, 8 / 11])


def test_views_combine_by_geometric_or_arithmetic_mean() -> None:
    views = torch.stack([logs([0.9, 0.1]), logs([0.4, 0.6])])
    # sqrt(0.9 * 0.4) = 0.6 and sqrt(0.1 * 0.6) = 0.2449
    geometric = 0.6 / (0.6 + math.sqrt(0.06))
    assert combined(views, "log_probs")[0, 0].exp().item() == pytest.approx(geometric)
    assert combined(views, "probabilities")[0].exp().tolist() == pytest.approx([0.65, 0.35])


def test_likelihood_ratios_weigh_both_sides_of_a_label_alike() -> None:
    # One text of label 0 with p = (1/2, 1/5), two of label 1 with p = (1/3, 1/2) and (1/5, 1/3).
    logprobs = logs([1 / 2, 1 / 5], [1 / 3, 1 / 2], [1 / 5, 1 / 3])
    found = likelihood_ratios(logprobs, torch.tensor([0, 1, 1]), 2)
    # Log-odds: token 0 has 0, -log 2, -log 4; token 1 has -log 4, 0, -log 2.
    log2 = math.log(2)
    assert found[0].tolist() == pytest.approx([1.5 * log2, -2 * log2 + 0.5 * log2])
    # Label 1: the text of label 0 weighs -2 / 1.
    assert found[1].tolist() == pytest.approx([-3 * log2, -log2 + 4 * log2])


def test_a_certain_token_has_finite_odds() -> None:
    assert torch.isfinite(likelihood_ratios(logs([1.0], [0.5]), torch.tensor([0, 1]), 2)).all()


def test_first_order_changes_are_exact_for_a_linear_loss() -> None:
    embeddings = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, -1.0]])
    current, gradient = torch.tensor([1.0, 1.0]), torch.tensor([0.5, -2.0])
    # loss(e) = gradient . e: 0.5, -4, 3.5 against the current -1.5.
    assert first_order_changes(embeddings, current, gradient).tolist() == pytest.approx([2.0, -2.5, 5.0])
