import math

import numpy as np
import pytest
import torch
from torch import Tensor

from policies.logprobs import (
    chunk_tokens_for,
    response_states,
    response_tokens,
    text_logprobs,
    token_logprobs,
)
from policies.sequences import SequenceBatch, pad_sequences


def identity(states: Tensor) -> Tensor:
    """An output layer whose logits are the states."""
    return states


def test_the_state_before_a_token_predicts_it(batch: SequenceBatch):
    # hidden[m, t] = [100 m + t]; row 0 has 3 prompt tokens, row 1 one, row 2 two.
    hidden = (100 * torch.arange(3)[:, None] + torch.arange(5)[None]).unsqueeze(-1).float()

    states = response_states(hidden, batch).squeeze(-1)

    assert states[0, :2].tolist() == [2, 3]
    assert states[1, :4].tolist() == [100, 101, 102, 103]
    assert states[2, :1].tolist() == [201]


def test_response_tokens_start_behind_the_prompt(batch: SequenceBatch):
    tokens = response_tokens(batch)

    assert tokens[batch.response_mask].tolist() == [8, 9, 11, 12, 13, 14, 17]


def one_token(logits: list[float], token: int) -> tuple[Tensor, SequenceBatch]:
    return torch.tensor([[logits]]), pad_sequences([np.array([0])], [np.array([token])], pad_id=0)


@pytest.mark.parametrize(
    ("temperature", "token", "probability", "entropy"),
    [
        # logits (0, log 3): p = (1/4, 3/4). At temperature 1/2: (0, log 9): p = (1/10, 9/10).
        (1.0, 0, 0.25, -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))),
        (1.0, 1, 0.75, -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))),
        (0.5, 0, 0.1, -(0.1 * math.log(0.1) + 0.9 * math.log(0.9))),
        (0.5, 1, 0.9, -(0.1 * math.log(0.1) + 0.9 * math.log(0.9))),
    ],
)
def test_logprob_and_entropy_are_those_of_the_tempered_softmax(
    temperature: float, token: int, probability: float, entropy: float
):
    states, batch = one_token([0.0, math.log(3)], token)

    result = token_logprobs(states, batch, identity, temperature=temperature, with_entropy=True)

    assert result.logprobs.item() == pytest.approx(math.log(probability), abs=1e-6)
    assert result.entropy is not None
    assert result.entropy.item() == pytest.approx(entropy, abs=1e-6)


def test_entropy_is_left_out_unless_asked():
    states, batch = one_token([0.0, 1.0], 1)

    assert token_logprobs(states, batch, identity, temperature=1.0).entropy is None


def test_padding_is_zero_and_never_reaches_the_output_layer(batch: SequenceBatch):
    states = torch.full((3, 4, 20), float("nan"))
    states[batch.response_mask] = 0.0
    rows = []

    def counting(states: Tensor) -> Tensor:
        rows.append(states.shape[0])
        return states

    logprobs = token_logprobs(states, batch, counting, temperature=1.0).logprobs

    assert sum(rows) == 7
    assert torch.all(logprobs[~batch.response_mask] == 0)
    assert torch.allclose(logprobs[batch.response_mask], torch.tensor(-math.log(20)))


@pytest.mark.parametrize("chunk_tokens", [1, 2, 3, 7, 100])
def test_values_and_gradients_do_not_depend_on_the_chunk_size(batch: SequenceBatch, chunk_tokens: int):
    torch.manual_seed(0)
    layer = torch.nn.Linear(6, 20)
    states = torch.randn(3, 4, 6)
    weights = torch.randn(3, 4)

    def run(chunk: int) -> tuple[Tensor, Tensor, Tensor]:
        layer.zero_grad()
        leaf = states.clone().requires_grad_()
        logprobs = token_logprobs(leaf, batch, layer, temperature=0.7, chunk_tokens=chunk).logprobs
        (logprobs * weights).sum().backward()
        assert leaf.grad is not None
        assert layer.weight.grad is not None
        return logprobs.detach(), leaf.grad, layer.weight.grad.clone()

    for received, expected in zip(run(chunk_tokens), run(1000), strict=True):
        assert torch.allclose(received, expected, atol=1e-6)


def test_no_call_of_the_output_layer_exceeds_the_chunk_and_backward_recomputes_it(batch: SequenceBatch):
    sizes = []

    def layer(states: Tensor) -> Tensor:
        sizes.append(states.shape[0])
        return states

    states = torch.randn(3, 4, 20, requires_grad=True)
    logprobs = token_logprobs(states, batch, layer, temperature=1.0, chunk_tokens=3).logprobs
    assert sizes == [3, 3, 1]

    logprobs.sum().backward()
    assert sorted(sizes) == [1, 1, 3, 3, 3, 3]


def test_the_gradient_is_that_of_the_log_softmax():
    # d log p_1 / d logits = onehot - p = (0 - 1/4, 1 - 3/4).
    states, batch = one_token([0.0, math.log(3)], 1)
    states.requires_grad_()

    token_logprobs(states, batch, identity, temperature=1.0).logprobs.sum().backward()

    assert states.grad is not None
    assert states.grad.flatten().tolist() == pytest.approx([-0.25, 0.25], abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("logits_per_piece", [1, 40, 10**6])
def test_pieces_of_the_logits_give_what_autograd_gives_for_all_of_them(
    batch: SequenceBatch, monkeypatch: pytest.MonkeyPatch, logits_per_piece: int, dtype: torch.dtype
):
    # 7 response tokens of 20 logits each: pieces of 1, 2 and 7 rows.
    monkeypatch.setattr("policies.logprobs._LOGITS_PER_PIECE_ON_CPU", logits_per_piece)
    states = torch.randn(3, 4, 20, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
    weights = torch.linspace(-1, 2, 12).view(3, 4)
    result = token_logprobs(states, batch, identity, temperature=0.7, with_entropy=True)
    (received,) = torch.autograd.grad((result.logprobs * weights).sum(), states)

    table = (states.float() / 0.7).log_softmax(-1)
    chosen = table.gather(2, response_tokens(batch).unsqueeze(2)).squeeze(2) * batch.response_mask
    (expected,) = torch.autograd.grad((chosen * weights).sum(), states)
    entropy = -(table.exp() * table).sum(-1) * batch.response_mask

    assert received.dtype == dtype
    assert torch.allclose(result.logprobs, chosen, atol=1e-6)
    assert result.entropy is not None
    assert torch.allclose(result.entropy, entropy, atol=1e-6)
    assert torch.allclose(received, expected, rtol=1e-5 if dtype == torch.float32 else 8e-3, atol=1e-6)
    assert float(expected.abs().max()) > 0.5


def test_entropy_carries_no_gradient():
    states, batch = one_token([0.0, 1.0], 1)

    entropy = token_logprobs(states.requires_grad_(), batch, identity, temperature=1.0, with_entropy=True).entropy

    assert entropy is not None
    assert not entropy.requires_grad


def test_results_are_float32_whatever_the_precision_of_the_logits(batch: SequenceBatch):
    states = torch.randn(3, 4, 20, dtype=torch.bfloat16)

    result = token_logprobs(states, batch, identity, temperature=1.0, with_entropy=True)

    assert result.logprobs.dtype == torch.float32
    assert result.entropy is not None
    assert result.entropy.dtype == torch.float32


def test_text_is_predicted_token_by_token_from_its_first():
    torch.manual_seed(0)
    ids = torch.tensor([[3, 1, 4, 1], [2, 7, 0, 0]])
    mask = torch.tensor([[True] * 4, [True, True, False, False]])
    hidden = torch.randn(2, 4, 8)

    received = text_logprobs(hidden, ids, mask, identity, chunk_tokens=2)

    table = hidden.log_softmax(-1)
    expected = [[table[0, 0, 1], table[0, 1, 4], table[0, 2, 1]], [table[1, 0, 7], 0.0, 0.0]]
    assert torch.allclose(received, torch.tensor(expected), atol=1e-6)


def test_chunks_shrink_as_the_vocabulary_grows():
    assert chunk_tokens_for(2**17) == 1024
    assert chunk_tokens_for(2**30) == 1


@torch.no_grad()
def test_chunks_without_gradients_are_smaller_but_not_too_small_to_compute_well():
    assert [chunk_tokens_for(2**bits) for bits in (13, 17, 20, 30)] == [1024, 512, 128, 1]


@pytest.mark.parametrize(("temperature", "chunk_tokens"), [(0.0, 1), (-1.0, 1), (1.0, 0)])
def test_a_temperature_or_chunk_that_is_not_positive_is_refused(
    batch: SequenceBatch, temperature: float, chunk_tokens: int
):
    with pytest.raises(ValueError, match="must be above 0"):
        token_logprobs(torch.zeros(3, 4, 20), batch, identity, temperature=temperature, chunk_tokens=chunk_tokens)
