import json

import numpy as np
import pytest

from reward.normalization import IDENTITY, NORMALIZER_FILE, Normalizer


def test_fitted_scores_have_mean_zero_and_standard_deviation_one():
    scores = np.array([1.0, 2.0, 6.0])

    normalizer = Normalizer.fit(scores, source="rows")

    assert (normalizer.mean, normalizer.std, normalizer.count) == (3.0, pytest.approx(np.sqrt(14 / 3)), 3)
    np.testing.assert_allclose(normalizer(scores), (scores - 3) / np.sqrt(14 / 3), rtol=1e-6)
    assert normalizer(scores).dtype == np.float32


def test_it_is_read_back_exactly(tmp_path):
    normalizer = Normalizer.fit(np.array([0.1, 0.7, 0.30000001]), source="demonstrations")

    normalizer.save(tmp_path)

    assert Normalizer.load(tmp_path) == normalizer


def test_the_identity_leaves_scores_alone():
    np.testing.assert_array_equal(IDENTITY(np.array([-1.5, 2.0])), [-1.5, 2.0])


def test_a_model_without_one_names_the_command_that_makes_it(tmp_path):
    with pytest.raises(ValueError, match=r"`rlhf reward`.*normalization=none"):
        Normalizer.load(tmp_path)


@pytest.mark.parametrize(
    ("scores", "message"),
    [([1.0], "at least 2"), ([1.0, np.nan], "all finite"), ([2.5, 2.5, 2.5], "a constant reward teaches nothing")],
)
def test_scores_without_a_scale_are_refused(scores, message):
    with pytest.raises(ValueError, match=message):
        Normalizer.fit(np.array(scores), source="rows")


@pytest.mark.parametrize("content", ["{", '{"mean": 0}', json.dumps({"mean": 0, "std": 0, "count": 2, "source": "x"})])
def test_a_damaged_file_is_refused(tmp_path, content):
    (tmp_path / NORMALIZER_FILE).write_text(content)

    with pytest.raises(ValueError, match="rlhf reward"):
        Normalizer.load(tmp_path)
