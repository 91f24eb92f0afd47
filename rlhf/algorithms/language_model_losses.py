"""The pretraining term of PPO-ptx.

Owns the loss of the separate pretraining stream, what its coefficient means, and the coefficient that keeps the balance
of two gradients. The coefficient itself is in the learner's config, the next-token shift in `policies.logprobs`.
"""

from torch import Tensor

from rlhf.algorithms.masked import require_mask, token_mean

_SMALLEST_NORM = 1e-12
"""Below it a gradient counts as none."""


def ptx_loss(
    logprobs: Tensor, mask: Tensor, token_count: int | Tensor | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Negative log-likelihood of pretraining text: -sum[ log pi(x_t) ] / token_count, nats per token.

    Added to PPO's loss as ptx_coefficient * ptx_loss, it is the last term of eq. 2 in Ouyang et al. 2022
    (arXiv:2203.02155):

        objective = E[ r(x, y) - beta * log(pi / pi_SFT) ] + gamma * E[ log pi(x_pretrain) ]          gamma = 27.8

    The paper does not say what its two terms are divided by, so 27.8 has a meaning only with a reading. Ours: both the
    policy loss and this one are means over tokens, the policy's with advantages of unit variance.

    - Both terms a mean over tokens, which is how DeepSpeed-Chat's `unsup_coef` takes it: ptx_coefficient = gamma.
    - Both terms a sum over each sequence, then a mean over sequences, which is eq. 2 to the letter: with R_mean tokens
      a response and L_mean tokens a pretraining text, the first term is R_mean times our policy loss and the second
      L_mean times this one; divided by R_mean, ptx_coefficient = gamma * L_mean / R_mean.
    - The policy term a sum over each sequence, the pretraining term a mean over tokens:
      ptx_coefficient = gamma / R_mean.

    Where gamma was tuned with advantages that are not whitened, divide it by their standard deviation (reward units)
    as well: whitening divides the policy's gradient by it. That the paper draws 8 pretraining texts for every episode
    changes the noise of a mean, not its size. Such conversions give an order of magnitude; the ratio of the two
    gradients' norms, measured in the run, is what to tune by.

    Args:
        logprobs: (M, T) log-probs of the text's tokens, temperature 1; carries the gradient.
        mask: (M, T) bool, True selects tokens that are predicted (neither padding nor the first).
        token_count: selected tokens of the whole pretraining minibatch (see `masked.token_mean`); None uses this mask's
            own. It is the pretraining stream's count, never that of the responses.

    Returns:
        The loss, and metrics that add up over micro-batches: `nll`, nats per token; exp of the sum is the perplexity.

    Raises:
        ValueError: if token_count is out of range, nothing is selected while it is None, the mask is not bool or shapes
            differ.
    """
    require_mask(mask, logprobs=logprobs)
    loss = token_mean(-logprobs, mask, token_count)
    return loss, {"nll": loss.detach()}


def balanced_coefficient(ptx_norm: Tensor, policy_norm: Tensor, gradient_ratio: float) -> Tensor:
    """Coefficient c of the pretraining loss with ||c * g_ptx|| = gradient_ratio * ||g_policy||, a scalar.

    A fixed coefficient fits one phase of a run: the policy's gradient shrinks as advantages do and the pretraining
    gradient grows as the policy drifts, or the other way round. (The ratio of norms is the one of GradNorm, Chen et al.
    2018, set in each minibatch instead of learned.) Where the policy has no gradient the text gets none, so text alone
    moves nothing.

    Args:
        ptx_norm: L2 norm of the gradient of the pretraining loss at coefficient 1, over all that trains.
        policy_norm: L2 norm of the gradient of everything else, over the same.
        gradient_ratio: Wanted ratio of the two, above 0.

    Raises:
        ValueError: if the ratio is not above 0.
    """
    if not gradient_ratio > 0:
        raise ValueError(f"gradient_ratio is {gradient_ratio}; it must be above 0: 0.1 to 1 are usual")
    return gradient_ratio * policy_norm / ptx_norm.clamp(min=_SMALLEST_NORM)
