"""The pretraining loss of PPO-ptx, against values worked by hand and the library's cross entropy."""

import math

import pytest
import torch

from rlhf.algorithms.language_model_losses import balanced_coefficient, ptx_loss

LOGPROBS = torch.tensor([[-1.0, -2.0, -50.0], [-4.0, math.nan, -50.0]])
MASK = torch.tensor([[True, True, False], [True, False, False]])


def test_it_is_the_mean_over_tokens_not_over_texts():
    # (1 + 2 + 4) / 3; the mean of the two texts' means would be (1.5 + 4) / 2 = 2.75.
    loss, metrics = ptx_loss(LOGPROBS, MASK)
    assert loss.item() == pytest.approx(7 / 3)
    assert metrics["nll"].item() == pytest.approx(7 / 3)


def test_it_agrees_with_cross_entropy_on_logits():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 5, 11, generator=generator)
    targets = torch.randint(11, (2, 5), generator=generator)
    mask = torch.tensor([[True] * 5, [True, True, False, False, False]])
    logprobs = logits.log_softmax(dim=-1).gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    expected = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), targets.masked_fill(~mask, -100).flatten(), ignore_index=-100
    )
    torch.testing.assert_close(ptx_loss(logprobs, mask)[0], expected)


def test_micro_batches_add_up_to_the_minibatch_in_loss_and_gradient():
    logprobs = torch.where(MASK, LOGPROBS, 0.0)
    scale = torch.tensor(1.5, requires_grad=True)
    whole = ptx_loss(scale * logprobs, MASK)[0]
    parts = [ptx_loss(scale * logprobs[row], MASK[row], token_count=3)[0] for row in (0, 1)]
    torch.testing.assert_close(parts[0] + parts[1], whole)
    gradients = [torch.autograd.grad(part, scale)[0] for part in (parts[0], parts[1], whole)]
    torch.testing.assert_close(gradients[0] + gradients[1], gradients[2])


def test_padding_receives_no_gradient_and_the_metric_carries_none():
    logprobs = LOGPROBS.clone().requires_grad_()
    loss, metrics = ptx_loss(logprobs, MASK, token_count=4)
    loss.backward()
    assert logprobs.grad is not None
    torch.testing.assert_close(logprobs.grad, -0.25 * MASK)
    assert not metrics["nll"].requires_grad


def test_a_text_without_predicted_tokens_is_refused():
    with pytest.raises(ValueError, match="selects nothing"):
        ptx_loss(LOGPROBS, torch.zeros_like(MASK))


def test_log_probs_of_another_shape_are_refused_by_name():
    with pytest.raises(ValueError, match=r"logprobs has shape \(2, 2\)"):
        ptx_loss(LOGPROBS[:, :2], MASK)


def test_the_balanced_coefficient_is_worked_by_hand():
    # 0.3 of the policy's 4 is 1.2, which is 2.4 times the text's 0.5.
    assert balanced_coefficient(torch.tensor(0.5), torch.tensor(4.0), 0.3).item() == pytest.approx(2.4)
    assert balanced_coefficient(torch.tensor(0.5), torch.tensor(0.0), 0.3).item() == 0.0
    assert math.isfinite(balanced_coefficient(torch.tensor(0.0), torch.tensor(4.0), 0.3).item())
    with pytest.raises(ValueError, match=r"gradient_ratio is 0\.0; it must be above 0"):
        balanced_coefficient(torch.tensor(0.5), torch.tensor(4.0), 0.0)
