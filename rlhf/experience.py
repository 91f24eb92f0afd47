"""From rollouts, scores, values and reference log-probs to what the learner trains on.

Owns the reward of an episode as PPO sees it (score plus KL penalty), advantages and returns of one step, and the drop
of samples that got no score. It holds no model; inputs and outputs are ragged numpy arrays, padding exists only inside
`build_experience`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reward.interface import RewardOutput
from rlhf.algorithms.advantages import apply_missing_eos, gae, group_sizes, grpo, rloo, token_rewards
from rlhf.algorithms.kl import kl_k1, sequence_kl
from rlhf.algorithms.masked import masked_mean, whiten, zero_outside
from rlhf.algorithms.value_losses import explained_variance
from rlhf.config import AlgorithmConfig, GaeAdvantages, GrpoAdvantages, RlooAdvantages
from rollout.types import Completion, PerToken, RolloutBatch, TokenIds


class NoScoredSamplesError(RuntimeError):
    """Every sample of a step lost its score; there is nothing to learn from."""


@dataclass(frozen=True, slots=True)
class Experience:
    """B samples ready for the update; every per-token list holds (R_i,) float32 arrays aligned with `responses`.

    Attributes:
        prompts: (P_i,) prompt ids.
        responses: (R_i,) response ids.
        behavior_logprobs: nats, under the weights that sampled.
        values: value before each token under the critic that started the step, reward units; none without a critic.
        advantages: whitened over the whole step where they come from a critic; else as `algorithm.advantages` says.
        returns: targets of the critic, from unwhitened advantages, reward units; none without a critic.
    """

    prompts: Sequence[TokenIds]
    responses: Sequence[TokenIds]
    behavior_logprobs: Sequence[PerToken]
    values: Sequence[PerToken]
    advantages: Sequence[PerToken]
    returns: Sequence[PerToken]

    def __len__(self) -> int:
        return len(self.responses)


def build_experience(
    batch: RolloutBatch,
    reward: RewardOutput,
    reference_logprobs: Sequence[PerToken],
    values: Sequence[PerToken],
    *,
    algorithm: AlgorithmConfig,
    kl_coefficient: float,
) -> tuple[Experience, dict[str, float]]:
    """Advantages and returns of one step, and the metrics that describe it.

    Consumes B completions with scores (B,), reference log-probs and values (R_i,) each. Produces an `Experience` of the
    samples that were scored: reward_t = -kl_coefficient * k1_t, the score added at the last token (Ziegler et al. 2019,
    equation 2; Ouyang et al. 2022, equation 2), GAE over it, advantages whitened over all tokens of the step before any
    split into minibatches. With RLOO or GRPO, every token of a response has its response's advantage, from the sum of
    its rewards and those of the responses that are left of its group; `values` is then empty.

    Raises:
        NoScoredSamplesError: when every sample failed to be scored.
    """
    kept: list[int] = np.flatnonzero(np.isfinite(reward.scores)).tolist()
    if not kept:
        reasons = sorted({failure.reason for failure in reward.failures})
        raise NoScoredSamplesError(
            f"none of {len(batch)} samples was scored: {'; '.join(reasons) or 'scores are not finite'}"
        )
    completions = [batch.completions[i] for i in kept]
    logprobs, mask = _pad([c.logprobs for c in completions])
    reference, _ = _pad([reference_logprobs[i] for i in kept])

    scores = torch.from_numpy(reward.scores[kept].copy())
    ended = torch.tensor([not c.is_truncated for c in completions])
    if algorithm.missing_eos is not None:
        scores = apply_missing_eos(scores, ended, algorithm.missing_eos.rule, value=algorithm.missing_eos.value)
    kl = kl_k1(logprobs, reference)
    rewards = token_rewards(scores, kl, mask, kl_coefficient)
    lengths = mask.sum(dim=1).tolist()
    estimator = algorithm.advantages
    if isinstance(estimator, GaeAdvantages):
        found, advantage_metrics = _by_a_critic(rewards, [values[i] for i in kept], mask, estimator)
    else:
        found, advantage_metrics = _by_the_group(rewards, scores, mask, _groups(completions), estimator)
    metrics = _objective_metrics(scores, kl, rewards, logprobs, mask) | _length_metrics(scores, lengths)
    dropped = len(batch) - len(kept) + sum(failure.responses for failure in batch.failures)
    metrics |= advantage_metrics | {"rollout/dropped": float(dropped)}
    experience = Experience(
        prompts=[batch.prompts[i].token_ids for i in kept],
        responses=[c.token_ids for c in completions],
        behavior_logprobs=[c.logprobs for c in completions],
        values=found.values,
        advantages=_ragged(found.per_token, lengths),
        returns=found.returns,
    )
    return experience, metrics


@dataclass(frozen=True, slots=True)
class _Advantages:
    """(B, R) advantages, and what a critic learns from: ragged values and returns, empty without one."""

    per_token: Tensor
    values: Sequence[PerToken] = ()
    returns: Sequence[PerToken] = ()


def _by_a_critic(
    rewards: Tensor, values: Sequence[PerToken], mask: Tensor, config: GaeAdvantages
) -> tuple[_Advantages, dict[str, float]]:
    """Whitened advantages by GAE."""
    padded, _ = _pad(values)
    advantages, returns = gae(rewards, padded, mask, gamma=config.gamma, lam=config.gae_lambda)
    found = _Advantages(whiten(advantages, mask), values, _ragged(returns, mask.sum(dim=1).tolist()))
    return found, {
        "critic/value_mean": masked_mean(padded, mask).item(),
        "critic/return_mean": masked_mean(returns, mask).item(),
        "critic/explained_var": explained_variance(padded, returns, mask).item(),
    }


def _by_the_group(
    rewards: Tensor, scores: Tensor, mask: Tensor, group: Tensor, config: RlooAdvantages | GrpoAdvantages
) -> tuple[_Advantages, dict[str, float]]:
    """The same advantage at every token of a response, and how much there was to compare."""
    totals = rewards.sum(dim=1)
    advantages = (
        grpo(totals, group, divide_by_std=config.divide_by_std)
        if isinstance(config, GrpoAdvantages)
        else rloo(totals, group)
    )
    blank = scores.new_zeros(int(group.max()) + 1)
    highest, lowest = (blank.scatter_reduce(0, group, scores, end, include_self=False) for end in ("amax", "amin"))
    return _Advantages(zero_outside(advantages.unsqueeze(1).expand_as(rewards), mask)), {
        "objective/lone_responses": float((group_sizes(group) == 1).sum()),
        "objective/equal_score_groups": (highest == lowest).float().mean().item(),
    }


def _groups(completions: Sequence[Completion]) -> Tensor:
    """(B,) number of each completion's prompt, in order of appearance."""
    numbers: dict[str, int] = {}
    return torch.tensor([numbers.setdefault(completion.prompt_id, len(numbers)) for completion in completions])


def _objective_metrics(scores: Tensor, kl: Tensor, rewards: Tensor, logprobs: Tensor, mask: Tensor) -> dict[str, float]:
    per_sequence_reward = rewards.sum(dim=1)
    return {
        "objective/kl": sequence_kl(kl, mask).mean().item(),
        "objective/scores": scores.mean().item(),
        "objective/scores_std": scores.std(correction=0).item(),
        "objective/rlhf_reward": per_sequence_reward.mean().item(),
        "objective/non_score_reward": (per_sequence_reward - scores).mean().item(),
        # Monte Carlo estimate of the policy's entropy from its own samples, nats per sequence.
        "objective/entropy": -(logprobs * mask).sum(dim=1).mean().item(),
    }


def _length_metrics(scores: Tensor, lengths: Sequence[int]) -> dict[str, float]:
    """Pearson's correlation cov(s, n) / sqrt(var(s) var(n)) of scores and lengths; nothing where one is constant."""
    columns = torch.stack([scores.double(), torch.tensor(lengths, dtype=torch.float64)])
    if (columns.amax(dim=1) == columns.amin(dim=1)).any():
        return {}
    return {"objective/score_length_correlation": torch.corrcoef(columns)[0, 1].item()}


def _pad(arrays: Sequence[NDArray[np.float32]]) -> tuple[Tensor, Tensor]:
    """Right-padded (B, R) tensor and the mask of its real entries."""
    lengths = np.array([len(array) for array in arrays])
    padded = np.zeros((len(arrays), lengths.max()), np.float32)
    for row, array in zip(padded, arrays, strict=True):
        row[: len(array)] = array
    return torch.from_numpy(padded), torch.from_numpy(np.arange(padded.shape[1]) < lengths[:, None])


def _ragged(padded: Tensor, lengths: Sequence[int]) -> list[PerToken]:
    return [row[:n].numpy().copy() for row, n in zip(padded, lengths, strict=True)]
