# torch.nn.Module types its attributes as Tensor | Module, which these tests know better.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportOptionalOperand=false
# pyright: reportCallIssue=false, reportReturnType=false
"""Groups of sequences get the scores, and give the gradients, that their sequences have one by one."""

import numpy as np
import pytest
import torch

from policies.config import FullTuning, LoraTuning, ModelConfig
from reward.group_scoring import score_groups
from reward.model import RewardModel
from reward.scoring import score_sequences
from tests.tiny_models import build_model


def ids(*numbers):
    return np.array(numbers, dtype=np.int32)


GROUPS = (
    (ids(1, 9, 8, 7, 2), ids(1, 9, 8, 30, 40, 2), ids(1, 9, 8, 2)),
    (ids(1, 5, 2), ids(1, 50, 51, 52, 53, 54, 2)),
    (ids(60, 61, 2), ids(70, 2)),
)
SEQUENCES = [sequence for group in GROUPS for sequence in group]
WEIGHTS = torch.linspace(-1, 1, len(SEQUENCES))
TUNINGS = {"full": FullTuning(), "lora": LoraTuning(rank=2, alpha=4)}


def new_model(folder, tuning="full", **options):
    model = RewardModel.new(ModelConfig(path=str(folder), tuning=TUNINGS[tuning], device="cpu", **options), seed=0)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for _, parameter in model.trainable():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def folder_of(architecture, tokenizer, path):
    build_model(architecture, len(tokenizer)).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def scores_and_gradients(model, scores):
    model._model.zero_grad(set_to_none=True)
    (scores * WEIGHTS).sum().backward()
    return scores.detach(), {name: parameter.grad for name, parameter in model.trainable()}


def own_forward(model):
    """transformers' own scores, every sequence alone and nothing left out."""
    rows = (torch.from_numpy(sequence.astype(np.int64))[None] for sequence in SEQUENCES)
    return torch.cat([model._classifier(input_ids=row).logits[:, 0] for row in rows])


@pytest.mark.parametrize("tuning", TUNINGS)
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "qwen3", "gpt_neox", "gemma2"])
def test_scores_and_gradients_are_transformers_own(architecture, tuning, tiny_tokenizer, tmp_path):
    model = new_model(folder_of(architecture, tiny_tokenizer, tmp_path), tuning)
    expected, expected_gradients = scores_and_gradients(model, own_forward(model))

    scores, gradients = scores_and_gradients(model, score_groups(model, GROUPS, token_budget=16))

    assert model.shares_prefixes == (architecture != "gemma2")  # Its layers slide and cap.
    torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-5)
    for name, gradient in expected_gradients.items():
        assert (gradient is None) == (gradients[name] is None), name
        if gradient is not None:
            scale = max(1.0, gradient.abs().max().item())
            torch.testing.assert_close(gradients[name] / scale, gradient / scale, rtol=1e-5, atol=1e-5)


def test_padded_and_packed_rows_give_the_same_scores_in_every_grouping(tiny_llama_folder):
    model = new_model(tiny_llama_folder)
    with torch.no_grad():
        packed = score_groups(model, GROUPS, token_budget=8)
        one_by_one = torch.cat([score_groups(model, [group], token_budget=8) for group in GROUPS])
        without_groups = score_groups(model, [[sequence] for sequence in SEQUENCES], token_budget=8)
        padded = score_sequences(model, SEQUENCES, token_budget=100)

    for scores in (one_by_one, without_groups, padded):
        torch.testing.assert_close(scores, packed, rtol=1e-5, atol=1e-5)


def test_a_model_whose_padding_ends_sequences_reads_padded_rows(tiny_llama_folder):
    model = new_model(tiny_llama_folder)
    model.tokenizer.pad_token = model.tokenizer.eos_token

    assert not model._can_share_prefixes()


@pytest.mark.parametrize("shares_prefixes", [True, False])
def test_under_autocast_scores_keep_the_digits_of_float32(tiny_llama_folder, shares_prefixes):
    model = new_model(tiny_llama_folder)
    model.shares_prefixes = shares_prefixes

    with torch.autocast("cpu", dtype=torch.bfloat16):
        reduced = score_groups(model, GROUPS, token_budget=100)
    exact = score_groups(model, GROUPS, token_budget=100)

    assert reduced.dtype == torch.float32
    assert not torch.equal(reduced, reduced.bfloat16().float())
    torch.testing.assert_close(reduced, exact, rtol=0.1, atol=0.1)


def test_padded_rows_attend_unfused_where_that_trains_faster_and_as_before_afterwards(tiny_llama_folder, monkeypatch):
    model = new_model(tiny_llama_folder)
    model.shares_prefixes = False
    used = []
    own = model.raw_scores

    def watched(*inputs):
        used.append(model._classifier.config._attn_implementation)
        return own(*inputs)

    monkeypatch.setattr(model, "raw_scores", watched)

    score_groups(model, GROUPS, token_budget=100)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        score_groups(model, GROUPS, token_budget=100)

    assert used == ["sdpa", "eager"]
    assert model._classifier.config._attn_implementation == "sdpa"
