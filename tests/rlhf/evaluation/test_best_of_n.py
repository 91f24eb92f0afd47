"""Best-of-n from one set of samples: every subset counted, ties shared, the KL bound."""

import itertools
import math

import numpy as np
import pytest

from rlhf.evaluation.best_of_n import best_of_n, best_of_n_weights, kl_bound, outcomes_against

PROXY = np.array([0.3, -1.0, 2.0, 0.9, 0.1])
GOLD = np.array([5.0, 1.0, -3.0, 4.0, 2.0])


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_weights_give_the_mean_over_all_subsets(n):
    subsets = [max(subset, key=PROXY.__getitem__) for subset in itertools.combinations(range(5), n)]
    expected = np.mean([GOLD[best] for best in subsets])
    assert best_of_n_weights(PROXY, n) @ GOLD == pytest.approx(expected)
    assert best_of_n_weights(PROXY, n).sum() == pytest.approx(1.0)


def test_samples_of_equal_score_share_their_chance():
    # Of the pairs {0,1}, {0,2}, {1,2}: one is a draw of lots between 0 and 1, the others choose 2.
    np.testing.assert_allclose(best_of_n_weights(np.array([1.0, 1.0, 4.0]), 2), [1 / 6, 1 / 6, 2 / 3])
    np.testing.assert_allclose(best_of_n_weights(np.array([1.0, 1.0, 1.0]), 3), [1 / 3, 1 / 3, 1 / 3])


def test_the_estimate_is_unbiased_for_fresh_samples():
    rng = np.random.default_rng(0)
    proxy, noise = rng.normal(size=(2000, 6)), rng.normal(size=(2000, 6))
    gold = proxy + noise
    estimates = [best_of_n_weights(row, 4) @ value for row, value in zip(proxy, gold, strict=True)]
    # The expected maximum of four standard normals is 1.0294.
    assert np.mean(estimates) == pytest.approx(1.0294, abs=float(4 * np.std(estimates) / math.sqrt(2000)))


def test_the_kl_bound_is_that_of_the_formula():
    assert kl_bound(1) == 0.0
    assert kl_bound(2) == pytest.approx(0.1931, abs=1e-4)
    assert kl_bound(16) == pytest.approx(math.log(16) - 15 / 16)


def test_every_prompt_counts_once_and_what_was_lost_is_left_out():
    proxy = np.array([1.0, 2.0, 5.0, 3.0, np.nan, 7.0, 8.0])
    gold = np.array([10.0, 20.0, 1.0, 2.0, 99.0, 6.0, np.nan])
    prompts = ["a", "a", "b", "b", "b", "c", "c"]
    one, two = best_of_n(proxy, {"gold": gold}, prompts, [1, 2], resamples=100, seed=0)
    assert one.means["gold"].mean == pytest.approx((15.0 + 1.5) / 2)
    assert two.means["gold"].mean == pytest.approx((20.0 + 1.0) / 2)
    with pytest.raises(ValueError, match="at least one"):
        best_of_n(proxy, {"gold": gold}, prompts, [3], resamples=100, seed=0)


def test_a_sample_meets_every_answer_of_its_opponent():
    shares = outcomes_against(
        np.array([1.0, 3.0, 3.0, 2.0]), np.array([2.0, 3.0, np.nan, 1.0]), ["a", "a", "b", "c"], ["a", "a", "a", "b"]
    )
    np.testing.assert_array_equal(shares, [0.0, 0.75, 1.0, np.nan])
