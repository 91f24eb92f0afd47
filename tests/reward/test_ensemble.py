import numpy as np
import pytest
from pydantic import ValidationError

from policies.config import LoraTuning, ModelConfig
from policies.loading import load_backbone
from reward.composite import build_reward, component_names
from reward.config import EnsembleSource, LearnedModelConfig, LengthRule, ModelSource
from reward.ensemble import EnsembleReward, combine
from reward.interface import RewardFailure, RewardOutput, RewardRequest
from reward.model import RewardModel
from reward.normalization import Normalization, Normalizer

REQUESTS = [RewardRequest("p", text) for text in (" the cat", " the red ball", " a hill")]


def scripted(*scores, reason="broken"):
    values = np.array(scores, dtype=np.float32)
    failures = [RewardFailure(int(index), reason) for index in np.flatnonzero(np.isnan(values))]
    return lambda requests: RewardOutput(values[: len(requests)], {"model": values}, failures)


def test_the_score_is_the_mean_less_the_penalty_times_the_standard_deviation():
    # Members 1 2 6: mean 3, deviations -2 -1 3, standard deviation sqrt(14 / 3). Members 4 4 4: no disagreement.
    score, disagreement = combine(np.array([[1.0, 4.0], [2.0, 4.0], [6.0, 4.0]]), penalty=0.5)

    assert disagreement == pytest.approx([np.sqrt(14 / 3), 0.0])
    assert score == pytest.approx([3 - 0.5 * np.sqrt(14 / 3), 4.0])
    assert score.dtype == disagreement.dtype == np.float32


def test_an_ensemble_reports_its_disagreement_beside_its_score():
    output = EnsembleReward([scripted(1.0, 0.0, 2.0), scripted(3.0, 0.0, 2.0)], penalty=1.0)(REQUESTS)

    assert output.scores.tolist() == [1.0, 0.0, 2.0]
    assert output.components["disagreement"].tolist() == [1.0, 0.0, 0.0]


def test_a_response_that_one_member_cannot_score_has_no_score():
    output = EnsembleReward([scripted(1.0, np.nan, 2.0), scripted(1.0, 5.0, np.nan)], penalty=0.0)(REQUESTS)

    np.testing.assert_array_equal(output.scores, [1.0, np.nan, np.nan])
    np.testing.assert_array_equal(output.components["disagreement"], [0.0, np.nan, np.nan])
    assert [(failure.index, failure.reason) for failure in output.failures] == [
        (1, "member 0: broken"),
        (2, "member 1: broken"),
    ]


@pytest.fixture
def members(tmp_path, tiny_llama_folder):
    """Folders of two reward models with heads of their own, each with its scale."""
    scales = [Normalizer(0.25, 2.0, 3, "test", temperature=0.5), Normalizer(-1.0, 0.5, 3, "test", temperature=4.0)]
    for seed, scale in enumerate(scales):
        model = RewardModel.new(ModelConfig(path=str(tiny_llama_folder), device="cpu"), seed=seed)
        model.save(tmp_path / f"member-{seed}", normalizer=scale, metadata={})
    return tuple(LearnedModelConfig(path=str(tmp_path / f"member-{seed}")) for seed in range(2))


def alone(member, normalization: Normalization = "stored"):
    source = ModelSource(path=member.path, normalization=normalization)
    return build_reward([source], policy_tokenizer=None)(REQUESTS).scores


def test_members_are_put_on_their_own_scale_before_they_are_compared(members):
    source = EnsembleSource(members=members, disagreement_penalty=2.0, name="rm", weight=0.5)

    output = build_reward([source, LengthRule(maximum_words=1)], policy_tokenizer=None)(REQUESTS)

    scores = np.stack([alone(member) for member in members])
    np.testing.assert_allclose(output.components["rm"], scores.mean(0) - 2.0 * scores.std(0), rtol=1e-5)
    np.testing.assert_allclose(output.components["rm/disagreement"], scores.std(0), rtol=1e-5)
    np.testing.assert_allclose(output.scores, 0.5 * output.components["rm"] + output.components["length"], rtol=1e-5)


def test_members_join_the_policys_base_where_they_were_trained_on_it(tmp_path, tiny_llama_folder):
    backbone = load_backbone(ModelConfig(path=str(tiny_llama_folder), device="cpu"))
    for seed in range(2):
        config = ModelConfig(path=str(tiny_llama_folder), tuning=LoraTuning(rank=2), device="cpu")
        scale = Normalizer(0.1 * seed, 1.0 + seed, 3, "test")
        RewardModel.new(config, seed=seed).save(tmp_path / f"lora-{seed}", normalizer=scale, metadata={})
    members = tuple(LearnedModelConfig(path=str(tmp_path / f"lora-{seed}")) for seed in range(2))
    source = EnsembleSource(members=members, name="rm")

    shared = build_reward([source], policy_tokenizer=backbone.tokenizer, shared_backbone=backbone)(REQUESTS)

    alone_scores = build_reward([source], policy_tokenizer=None)(REQUESTS)
    np.testing.assert_allclose(shared.scores, alone_scores.scores, rtol=1e-4, atol=1e-5)
    assert len(backbone.adapters.names) == 2


def test_an_ensemble_can_score_in_logits(members):
    name, source = "rm", EnsembleSource(members=members, normalization="logits", name="rm")

    output = build_reward([source], policy_tokenizer=None)(REQUESTS)

    expected = np.mean([alone(member, "logits") for member in members], axis=0)
    np.testing.assert_allclose(output.components[name], expected, rtol=1e-5)


def test_an_ensemble_is_named_after_its_first_members_run():
    paths = [LearnedModelConfig(path=path) for path in ("runs/taste/model", "runs/taste/member-1/model")]

    assert component_names([EnsembleSource(members=tuple(paths))]) == ["taste"]


def test_one_member_is_no_ensemble():
    with pytest.raises(ValidationError, match="members"):
        EnsembleSource(members=(LearnedModelConfig(path="a"),))
