"""A score is a function of the exchange alone, whatever its batch, its padding and the number of workers."""

import numpy as np
import pytest
import torch

from policies.config import FullTuning, LoraTuning, ModelConfig
from policies.tokenization import encode_completion, encode_prompt, train_tokenizer
from reward.composite import build_reward
from reward.config import LengthRule, ModelSource
from reward.interface import RewardRequest
from reward.model import RewardModel
from reward.normalization import Normalizer
from reward.worker import RewardWorker
from rlhf.role_groups import join_outputs
from tests.tiny_models import write_llama

SCALE = Normalizer(mean=0.5, std=2.0, count=3, source="test")
PROMPTS = ("the small cat", "where is the bird?", "a dog", "she", "")
WEIGHTS = {"adapter": 1.0, "whole": 0.5, "stranger": -0.25}
RESPONSES = (" sat on the mat", "", " ran over the green hill to find the red ball", " in the tree")


def write_model(folder, base, tuning, *, seed, padding_side="right"):
    torch.manual_seed(seed)
    model = RewardModel.new(ModelConfig(path=str(base), tuning=tuning, device="cpu"), seed=seed)
    with torch.no_grad():
        for _, parameter in model.trainable():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    model.tokenizer.padding_side = padding_side
    model.save(folder, normalizer=SCALE, metadata={})
    return folder


@pytest.fixture(scope="module")
def folders(tiny_llama_folder, tmp_path_factory):
    """An adapter, a whole model, and a model with another tokenizer."""
    place = tmp_path_factory.mktemp("rewards")
    write_llama(place / "other", train_tokenizer(["zebra quartz vox and jug"], vocabulary_size=280))
    return {
        "adapter": write_model(place / "a", tiny_llama_folder, LoraTuning(rank=2), seed=1),
        "whole": write_model(place / "b", tiny_llama_folder, FullTuning(), seed=2),
        "stranger": write_model(place / "c", place / "other", FullTuning(), seed=3),
    }


def sources(folders, **options):
    models = [
        ModelSource(name=name, path=str(folders[name]), weight=weight, **options) for name, weight in WEIGHTS.items()
    ]
    return [*models, LengthRule(maximum_words=3, weight=0.1)]


@pytest.fixture(scope="module")
def requests(tiny_tokenizer):
    """Every prompt with every response, as text and as ids of the policy's tokenizer."""
    return [
        RewardRequest(p, r, encode_prompt(p, tiny_tokenizer), encode_completion(r, tiny_tokenizer))
        for p in PROMPTS
        for r in RESPONSES
    ]


@pytest.fixture(scope="module")
def expected(folders, requests, tiny_tokenizer):
    return build_reward(sources(folders), policy_tokenizer=tiny_tokenizer)(requests)


def assert_same(output, expected):
    assert output.components.keys() == expected.components.keys()
    for name, scores in expected.components.items():
        np.testing.assert_allclose(output.components[name], scores, rtol=1e-4, atol=1e-5, err_msg=name)
    np.testing.assert_allclose(output.scores, expected.scores, rtol=1e-4, atol=1e-5)


def test_several_models_have_names_weights_and_scales_of_their_own(expected):
    parts = expected.components

    assert list(parts) == ["adapter", "whole", "stranger", "length"]
    total = parts["adapter"] + 0.5 * parts["whole"] - 0.25 * parts["stranger"] + 0.1 * parts["length"]
    np.testing.assert_allclose(expected.scores, total, rtol=1e-5, atol=1e-6)
    assert all(scores.std() > 0.02 for scores in parts.values())


def test_scores_do_not_depend_on_the_size_of_a_forward_pass(folders, requests, expected, tiny_tokenizer):
    for tokens in (1, 60):
        reward = build_reward(sources(folders, micro_batch_tokens=tokens), policy_tokenizer=tiny_tokenizer)
        assert_same(reward(requests), expected)


def test_scores_do_not_depend_on_the_rest_of_the_batch(folders, requests, expected, tiny_tokenizer):
    reward = build_reward(sources(folders), policy_tokenizer=tiny_tokenizer)

    alone = join_outputs([(index, reward([request])) for index, request in enumerate(requests)])
    backwards = reward(requests[::-1])

    assert_same(alone, expected)
    np.testing.assert_allclose(backwards.scores[::-1], expected.scores, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("count", [2, 3, 7])
def test_scores_do_not_depend_on_the_number_of_workers(folders, requests, expected, tiny_tokenizer, count):
    workers = [RewardWorker(build_reward(sources(folders), policy_tokenizer=tiny_tokenizer)) for _ in range(count)]
    bounds = np.linspace(0, len(requests), count + 1).astype(int).tolist()

    shares = [(a, worker.score(requests[a:b])) for worker, a, b in zip(workers, bounds, bounds[1:], strict=False)]

    assert_same(join_outputs(shares), expected)


def test_scores_do_not_depend_on_the_padding_side_of_the_saved_tokenizer(tiny_llama_folder, tmp_path, requests):
    scores = []
    for side in ("right", "left"):
        folder = write_model(tmp_path / side, tiny_llama_folder, FullTuning(), seed=5, padding_side=side)
        reward = build_reward([ModelSource(path=str(folder), name="model")], policy_tokenizer=None)
        scores.append(reward(requests).scores)

    np.testing.assert_allclose(scores[1], scores[0], rtol=1e-5, atol=1e-6)


def test_a_model_with_another_tokenizer_reads_the_text(folders, requests, expected, tiny_tokenizer):
    other_text = [RewardRequest("x", "y", request.prompt_ids, request.response_ids) for request in requests]

    parts = build_reward(sources(folders), policy_tokenizer=tiny_tokenizer)(other_text).components

    np.testing.assert_allclose(parts["whole"], expected.components["whole"], rtol=1e-4, atol=1e-5)
    assert np.ptp(parts["stranger"]) < 1e-5
    texts = [RewardRequest(request.prompt, request.response) for request in requests]
    text_only = build_reward(sources(folders), policy_tokenizer=None)(texts)
    np.testing.assert_allclose(text_only.components["stranger"], expected.components["stranger"], rtol=1e-5, atol=1e-6)
