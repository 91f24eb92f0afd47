import numpy as np
import pytest
import torch

from policies.config import LoraTuning, ModelConfig
from policies.loading import load_backbone
from policies.tokenization import decode, encode_completion, encode_prompt, tokenizer_fingerprint, train_tokenizer
from reward.composite import build_reward
from reward.config import ModelSource
from reward.interface import RewardRequest
from reward.model import RewardModel
from reward.normalization import IDENTITY, Normalizer
from reward.scoring import LearnedReward, score_sequences

SCALE = Normalizer(mean=0.5, std=4.0, count=3, source="test")
SOURCE = ModelSource(path="test")
EXCHANGES = [("the cat", " sat on the mat"), ("where is the bird?", " in the tree"), ("", " all day"), ("a dog", "")]


class SumOfIds:
    """A scripted scorer: the score is the sum of the real ids, so what it was shown is known."""

    device = torch.device("cpu")
    context_tokens = 50

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.widths = []

    def raw_scores(self, input_ids, attention_mask):
        self.widths.append(input_ids.numel())
        return (input_ids * attention_mask).sum(dim=1).float()


@pytest.fixture
def scorer(tiny_tokenizer):
    return SumOfIds(tiny_tokenizer)


def shown(tokenizer, prompt, response):
    return float(sum(encode_prompt(prompt, tokenizer)) + sum(encode_completion(response, tokenizer)))


def text_requests(exchanges=EXCHANGES):
    return [RewardRequest(prompt, response) for prompt, response in exchanges]


def id_requests(tokenizer, ending=(2,)):
    return [
        RewardRequest(
            "other text",
            "other text",
            encode_prompt(prompt, tokenizer),
            np.array([*encode_completion(response, tokenizer)[:-1], *ending], dtype=np.int32),
        )
        for prompt, response in EXCHANGES
    ]


def test_scores_come_back_in_order_and_within_the_budget(scorer):
    sequences = [np.arange(2, 2 + length, dtype=np.int32) for length in (9, 2, 5, 2)]

    scores = score_sequences(scorer, sequences, token_budget=10)

    assert scores.tolist() == [float(sum(sequence)) for sequence in sequences]
    assert all(width <= 10 for width in scorer.widths)
    assert len(scorer.widths) == 3


def test_scores_carry_gradients_to_every_sequence(tiny_llama_folder):
    model = RewardModel.new(ModelConfig(path=str(tiny_llama_folder), device="cpu"), seed=0)
    sequences = [np.array(ids, dtype=np.int32) for ids in ([1, 9, 2], [1, 8, 7, 6, 2])]
    weights = torch.tensor([1.0, -2.0])

    def gradient(budget):
        model._model.zero_grad(set_to_none=True)
        (score_sequences(model, sequences, token_budget=budget) * weights).sum().backward()
        return {name: parameter.grad for name, parameter in model.trainable()}

    together, apart = gradient(100), gradient(1)
    for name, value in together.items():
        assert value is not None
        torch.testing.assert_close(apart[name], value, rtol=1e-4, atol=1e-5)


def test_text_is_encoded_and_scores_are_normalised(scorer, tiny_tokenizer):
    output = LearnedReward(scorer, SCALE, SOURCE)(text_requests())

    raw = np.array([shown(tiny_tokenizer, *exchange) for exchange in EXCHANGES])
    np.testing.assert_allclose(output.scores, (raw - 0.5) / 4.0, rtol=1e-6)
    assert output.failures == []


@pytest.mark.parametrize("ending", [(2,), (), (0,)], ids=["eos", "cut off", "pad"])
def test_ids_of_the_same_tokenizer_are_used_and_score_like_their_text(scorer, tiny_tokenizer, ending):
    fingerprint = tokenizer_fingerprint(tiny_tokenizer)
    reward = LearnedReward(scorer, IDENTITY, SOURCE, policy_fingerprint=fingerprint)

    by_ids = reward(id_requests(tiny_tokenizer, ending)).scores

    np.testing.assert_array_equal(by_ids, reward(text_requests()).scores)


def test_ids_of_another_tokenizer_are_left_alone(scorer, tiny_tokenizer):
    other = train_tokenizer(["zebra quartz vox"], vocabulary_size=262)
    reward = LearnedReward(scorer, IDENTITY, SOURCE, policy_fingerprint=tokenizer_fingerprint(other))

    scores = reward(id_requests(tiny_tokenizer)).scores

    np.testing.assert_array_equal(scores, shown(tiny_tokenizer, "other text", "other text"))


def test_a_model_of_responses_is_not_shown_the_prompt(scorer, tiny_tokenizer):
    source = SOURCE.model_copy(update={"reads": "response"})
    expected = [1.0 + sum(encode_completion(response, tiny_tokenizer)) for _, response in EXCHANGES]

    by_text = LearnedReward(scorer, IDENTITY, source)(text_requests()).scores
    fingerprint = tokenizer_fingerprint(tiny_tokenizer)
    by_ids = LearnedReward(scorer, IDENTITY, source, policy_fingerprint=fingerprint)(id_requests(tiny_tokenizer)).scores

    np.testing.assert_array_equal(by_text, expected)
    np.testing.assert_array_equal(by_ids, expected)


@pytest.mark.parametrize(("max_tokens", "kept"), [(3, 3), (512, SumOfIds.context_tokens)])
def test_a_long_exchange_loses_its_beginning(scorer, tiny_tokenizer, max_tokens, kept):
    source = SOURCE.model_copy(update={"max_tokens": max_tokens})
    response = " the small cat sat" * 20

    (score,) = LearnedReward(scorer, IDENTITY, source)([RewardRequest("p", response)]).scores

    assert score == sum(encode_completion(response, tiny_tokenizer)[-kept:])


def test_a_score_that_is_not_finite_is_a_failure_and_costs_the_others_nothing(scorer):
    scorer.raw_scores = lambda ids, mask: torch.where(ids.shape[1] - mask.sum(1) == 0, torch.inf, 1.0)

    output = LearnedReward(scorer, IDENTITY, SOURCE)(text_requests())

    longest = int(np.argmax([len(prompt + response) for prompt, response in EXCHANGES]))
    assert [failure.index for failure in output.failures] == [longest]
    assert np.flatnonzero(np.isnan(output.scores)).tolist() == [longest]


def test_no_requests_give_no_scores(scorer):
    assert LearnedReward(scorer, IDENTITY, SOURCE)([]).scores.shape == (0,)


def test_a_trained_model_joins_the_policys_base_and_scores_the_same_there(tiny_llama_folder, tmp_path):
    model = RewardModel.new(ModelConfig(path=str(tiny_llama_folder), tuning=LoraTuning(rank=2), device="cpu"), seed=0)
    model.save(tmp_path / "model", normalizer=SCALE, metadata={})
    backbone = load_backbone(ModelConfig(path=str(tiny_llama_folder), device="cpu"))
    source = ModelSource(path=str(tmp_path / "model"), name="proxy")

    shared = build_reward([source], policy_tokenizer=backbone.tokenizer, shared_backbone=backbone)
    alone = build_reward([source], policy_tokenizer=None)

    np.testing.assert_allclose(shared(text_requests()).scores, alone(text_requests()).scores, rtol=1e-4, atol=1e-5)
    assert len(backbone.adapters.names) == 1


def test_another_base_is_not_shared(tiny_llama_folder, tmp_path):
    model = RewardModel.new(ModelConfig(path=str(tiny_llama_folder), tuning=LoraTuning(rank=2), device="cpu"), seed=0)
    model.save(tmp_path / "model", normalizer=SCALE, metadata={})
    backbone = load_backbone(ModelConfig(path=str(tiny_llama_folder), device="cpu"))
    next(backbone.model.parameters()).data += 1.0

    reward = build_reward(
        [ModelSource(path=str(tmp_path / "model"))], policy_tokenizer=backbone.tokenizer, shared_backbone=backbone
    )

    assert backbone.adapters.names == ()
    assert np.isfinite(reward(text_requests()).scores).all()


def test_raw_scores_are_taken_only_where_that_is_asked_for(tiny_llama_folder, tmp_path):
    model = RewardModel.new(ModelConfig(path=str(tiny_llama_folder), device="cpu"), seed=0)
    model.save(tmp_path / "model", normalizer=SCALE, metadata={})
    (tmp_path / "model" / "reward_normalizer.json").unlink()

    with pytest.raises(ValueError, match="normalization=none"):
        build_reward([ModelSource(path=str(tmp_path / "model"))], policy_tokenizer=None)
    raw = build_reward([ModelSource(path=str(tmp_path / "model"), normalization="none")], policy_tokenizer=None)
    expected = LearnedReward(model, IDENTITY, SOURCE)(text_requests()).scores
    np.testing.assert_allclose(raw(text_requests()).scores, expected, rtol=1e-5, atol=1e-6)


def test_responses_decode_to_what_the_text_hand_off_sees(tiny_tokenizer):
    ids = encode_completion(" in the tree", tiny_tokenizer)

    assert decode(ids, tiny_tokenizer) == " in the tree"
