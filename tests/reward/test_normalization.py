import json
import re

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
    command = f"`rlhf normalize-reward model.path={tmp_path} data.normalize=ROWS.jsonl`"
    with pytest.raises(ValueError, match=rf"{re.escape(command)}.*normalization=none"):
        Normalizer.load(tmp_path)


def test_in_logits_a_lead_is_divided_by_the_temperature():
    stored = Normalizer(mean=1.0, std=2.0, count=3, source="rows", temperature=0.5)

    np.testing.assert_allclose(stored.in_logits()(np.array([1.0, 2.0])), [0.0, 2.0])
    with pytest.raises(ValueError, match=r"rows has no temperature.*calibrate=temperature.*normalization=stored"):
        Normalizer(mean=1.0, std=2.0, count=3, source="rows").in_logits()


def test_a_source_gets_the_scale_it_asks_for(tmp_path):
    stored = Normalizer(mean=1.0, std=2.0, count=3, source="rows", temperature=0.5)
    stored.save(tmp_path)

    assert Normalizer.of_model(tmp_path, "stored") == stored
    assert Normalizer.of_model(tmp_path, "logits").std == 0.5
    assert Normalizer.of_model(tmp_path, "none") == IDENTITY


def test_for_a_model_on_the_hub_the_command_names_a_folder_of_its_own():
    with pytest.raises(ValueError, match=r"`rlhf normalize-reward model\.path=owner/name .* run_dir=FOLDER`"):
        Normalizer.load("owner/name")


@pytest.mark.parametrize(
    ("scores", "message"),
    [([1.0], "at least 2"), ([1.0, np.nan], "all finite"), ([2.5, 2.5, 2.5], "a constant reward teaches nothing")],
)
def test_scores_without_a_scale_are_refused(scores, message):
    with pytest.raises(ValueError, match=message):
        Normalizer.fit(np.array(scores), source="rows")


@pytest.mark.parametrize(
    "content",
    [
        "{",
        '{"mean": 0}',
        json.dumps({"mean": 0, "std": 0, "count": 2, "source": "x"}),
        json.dumps({"mean": 0, "std": 1, "count": 2, "source": "x", "temperature": 0}),
    ],
)
def test_a_damaged_file_is_refused(tmp_path, content):
    (tmp_path / NORMALIZER_FILE).write_text(content)

    with pytest.raises(ValueError, match=r"`rlhf normalize-reward model\.path=.* replace=true`"):
        Normalizer.load(tmp_path)
