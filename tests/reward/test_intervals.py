import numpy as np
import pytest

from reward.intervals import bootstrap_interval, bootstrap_sums, cluster_sums, share_interval


def test_sums_are_by_cluster():
    values = np.array([[1.0, 10.0], [2.0, 20.0], [4.0, 40.0]])

    np.testing.assert_array_equal(cluster_sums(values, np.array([1, 0, 1])), [[2.0, 20.0], [5.0, 50.0]])


def test_resampled_sums_scatter_around_the_sum_by_the_standard_error():
    sums = np.random.default_rng(1).normal(3.0, 2.0, size=(400, 2))

    drawn = bootstrap_sums(sums, seed=0, resamples=3000)

    assert drawn.shape == (3000, 2)
    np.testing.assert_allclose(drawn.mean(axis=0), sums.sum(axis=0), rtol=0.01)
    np.testing.assert_allclose(drawn.std(axis=0), sums.std(axis=0) * np.sqrt(400), rtol=0.05)


def test_resampling_does_not_depend_on_how_it_is_cut_into_blocks(monkeypatch):
    sums = np.random.default_rng(1).normal(size=(50, 1))
    whole = bootstrap_sums(sums, seed=3, resamples=40)
    monkeypatch.setattr("reward.intervals._DRAWS_AT_ONCE", 120)

    np.testing.assert_allclose(bootstrap_sums(sums, seed=3, resamples=40), whole)


def test_the_interval_of_certain_values_is_a_point():
    assert bootstrap_interval(np.ones(7), seed=0) == (1.0, 1.0)


def test_the_interval_of_a_mean_is_that_of_its_standard_error():
    values = np.random.default_rng(0).normal(2.0, 3.0, size=500)

    low, high = bootstrap_interval(values, seed=0)

    assert high - low == pytest.approx(2 * 1.96 * values.std() / np.sqrt(500), rel=0.06)
    assert low < values.mean() < high


def independent(values):
    return share_interval(np.array(values), np.ones(len(values)), np.arange(len(values)))


def test_independent_values_get_the_score_interval_of_wilson():
    # 3 of 4 right, t = 3.182 with 3 degrees of freedom, t^2 = 10.128:
    # centre (0.75 + 10.128 / 8) / (1 + 10.128 / 4), half width sqrt(10.128 * (0.75 * 0.25 / 4 + 10.128 / 64)) / 3.532.
    low, high = independent([1.0, 1.0, 0.0, 1.0])

    assert (low + high) / 2 == pytest.approx((0.75 + 1.2660) / 3.5320, abs=1e-3)
    assert (high - low) / 2 == pytest.approx(np.sqrt(10.128 * (0.046875 + 0.15825)) / 3.5320, abs=1e-3)


def test_three_right_of_three_leave_much_open():
    low, high = independent([1.0, 1.0, 1.0])

    assert 0.1 < low < 0.4
    assert high == pytest.approx(1.0)


def test_one_cluster_says_nothing():
    assert share_interval(np.array([1.0, 1.0]), np.ones(2), np.zeros(2, dtype=int)) == (0.0, 1.0)


def test_repeating_each_value_in_its_cluster_adds_no_certainty():
    values = np.random.default_rng(0).integers(0, 2, 60).astype(float)

    repeated = share_interval(np.repeat(values, 15), np.full(900, 1 / 15), np.repeat(np.arange(60), 15))

    assert repeated == pytest.approx(independent(values))


def test_independent_pairs_within_clusters_do():
    values = np.random.default_rng(0).integers(0, 2, 900).astype(float)

    low, high = share_interval(values, np.full(900, 1 / 15), np.repeat(np.arange(60), 15))

    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(0.25 / 900), rel=0.25)


def test_the_share_lies_in_its_interval_at_the_nominal_rate():
    rng = np.random.default_rng(5)
    covered = 0
    for _ in range(400):
        rates = rng.beta(4.0, 2.0, size=40)
        values = (rng.random((40, 6)) < rates[:, None]).astype(float).reshape(-1)
        low, high = share_interval(values, np.full(240, 1 / 6), np.repeat(np.arange(40), 6))
        covered += low <= 4 / 6 <= high
    assert 0.92 <= covered / 400 <= 0.98
