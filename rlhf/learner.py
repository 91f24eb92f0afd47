"""The learner role: policy and critic of PPO, their optimizers, and the update of one step.

Owns epochs, minibatches, micro-batches by token budget, the PPO-ptx mix and the optimizer steps. It samples nothing,
scores nothing and knows no Ray. Losses are normalised by the token count of their minibatch, so gradients do not depend
on how samples fall into micro-batches.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from policies.causal import CausalPolicy
from policies.sequences import SequenceBatch, evaluate_in_micro_batches, micro_batches, pad_sequences, pad_texts
from policies.value import ValueModel
from rlhf.algorithms.language_model_losses import ptx_loss
from rlhf.algorithms.masked import zero_outside
from rlhf.algorithms.policy_losses import MAX_LOG_RATIO, clipped_policy_loss, truncated_importance_weights
from rlhf.algorithms.value_losses import clipped_value_loss
from rlhf.config import AlgorithmConfig, OptimizerConfig, PpoConfig
from rlhf.experience import Experience
from rlhf.optimization import (
    NonFiniteLossError,
    build_optimizer,
    build_schedule,
    optimizer_step,
    require_finite,
)
from rlhf.runtime.training_state import TrainingState, load_optimizer_tensors, optimizer_tensors, with_owner
from rlhf.text_stream import TextStream, perplexity
from rollout.types import PerToken, TokenIds

Sums = dict[str, Tensor]


class Trained:
    """One model with its optimizer and schedule: the policy, or the critic."""

    def __init__(
        self, name: str, parameters: Sequence[tuple[str, nn.Parameter]], config: OptimizerConfig, total_steps: int
    ) -> None:
        self.name = name
        self.parameters = parameters
        self._config = config
        self._optimizer = build_optimizer(parameters, config)
        self._schedule = build_schedule(config, total_steps)
        self.steps_done = 0

    def step(self, loss: float) -> tuple[float, float]:
        """Clips and applies the accumulated gradients; returns (gradient norm before clipping, learning rate).

        Raises:
            NonFiniteLossError: before any weight of this model has changed, naming the model.
        """
        try:
            result = optimizer_step(self._optimizer, self._config, self._schedule, step=self.steps_done, loss=loss)
        except NonFiniteLossError as error:
            raise NonFiniteLossError(f"{self.name} {error.quantity}", error.value, error.step) from error
        self.steps_done += 1
        return result.grad_norm, result.learning_rate

    def clear_gradients(self) -> None:
        """Forgets the accumulated gradients."""
        self._optimizer.zero_grad(set_to_none=True)

    def gradients(self) -> list[Tensor]:
        """Copies of the accumulated gradients."""
        return [p.grad.clone() for _, p in self.parameters if p.grad is not None]

    def optimizer_state(self) -> dict[str, Tensor]:
        """Moments, for a checkpoint."""
        return optimizer_tensors(self._optimizer, self.parameters)

    def load_optimizer_state(self, tensors: Mapping[str, Tensor], steps_done: int) -> None:
        """Continues from `optimizer_state`."""
        load_optimizer_tensors(self._optimizer, self.parameters, tensors)
        self.steps_done = steps_done


@dataclass(frozen=True, slots=True)
class _Padded:
    """The columns of a micro-batch beside its token batch, (M, R)."""

    batch: SequenceBatch
    behavior_logprobs: Tensor
    advantages: Tensor
    values: Tensor
    returns: Tensor


class Learner:
    """Updates policy and critic from experience (Schulman et al. 2017), with the pretraining mix of Ouyang et al. 2022.

    Args:
        policy: Trainable policy.
        critic: Trainable value model; shares no trainable parameter with the policy.
        config: The run's configuration; `algorithm`, the optimizers, `micro_batch_tokens`, `steps` and `seed` are read.
        ptx: Pretraining text; required exactly when `algorithm.ptx` is set.
    """

    def __init__(
        self, policy: CausalPolicy, critic: ValueModel, *, config: PpoConfig, ptx: TextStream | None = None
    ) -> None:
        assert (ptx is None) == (config.algorithm.ptx is None), "a pretraining stream belongs to algorithm.ptx"
        self._policy, self._critic, self._ptx = policy, critic, ptx
        self._algorithm: AlgorithmConfig = config.algorithm
        self._backbone, self._seed, self._budget = policy.backbone, config.seed, config.micro_batch_tokens
        updates = config.steps * config.algorithm.epochs * config.algorithm.minibatches
        self._policy_training = Trained("policy", policy.trainable(), config.optimizer, updates)
        self._critic_training = Trained("critic", critic.trainable(), config.critic.optimizer, updates)

    def values(self, prompts: Sequence[TokenIds], responses: Sequence[TokenIds]) -> list[PerToken]:
        """Value before each response token, (R_i,) float32 in reward units."""
        return self._without_gradient(self._critic.values, prompts, responses)

    def logprobs(self, prompts: Sequence[TokenIds], responses: Sequence[TokenIds]) -> list[PerToken]:
        """Log-probs of the response tokens under the current policy, (R_i,) float32, nats."""
        return self._without_gradient(lambda batch: self._policy.logprobs(batch).logprobs, prompts, responses)

    def update(self, experience: Experience, *, step: int) -> dict[str, float]:
        """`epochs` passes over the step's samples, each in `minibatches` optimizer steps of policy and critic.

        Args:
            experience: B samples.
            step: Index of the PPO step; with the seed it decides the order of samples.

        Returns:
            Metrics averaged over the minibatches (maxima where the name says so), and `policy/first_step_ratio_error`,
            the largest |ratio - 1| before anything moved, which is 0 up to float error when sampler and learner agree.

        Raises:
            NonFiniteLossError: a loss or gradient is NaN or infinite; the weights are those before that optimizer step,
                and no gradient is left over.
        """
        proximal, weights = self._importance(experience)
        history = [
            self._minibatch(experience, rows, proximal, weights) for rows in self._minibatches(len(experience), step)
        ]
        metrics = _average(history)
        del metrics["policy/ratio_error_max"]
        # The first minibatch is the only one whose ratios are taken before any weight of this step has moved.
        return metrics | {"policy/first_step_ratio_error": history[0]["policy/ratio_error_max"]}

    def publish(self) -> dict[str, Tensor]:
        """The policy weights that rollout workers need: the adapter's, or all of them."""
        return self._policy.weights()

    def perplexity(self, texts: Sequence[str]) -> float:
        """Exp of the mean next-token loss over held-out text, at temperature 1: the alignment tax while training."""
        return perplexity(self._policy, texts, micro_batch_tokens=self._budget)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything of the learner that decides the next number: tensors, which share its memory, and plain values."""
        tensors = {
            **with_owner("policy", self._policy.weights()),
            **with_owner("critic", self._critic.state()),
            **with_owner("policy_optimizer", self._policy_training.optimizer_state()),
            **with_owner("critic_optimizer", self._critic_training.optimizer_state()),
        }
        values: dict[str, Any] = {
            "policy_updates": self._policy_training.steps_done,
            "critic_updates": self._critic_training.steps_done,
            "ptx": None if self._ptx is None else self._ptx.state_dict(),
        }
        return tensors, values

    def load_state(self, state: TrainingState) -> None:
        """Continues from `state`; `state.values["learner"]` holds the plain values."""
        values = state.values["learner"]
        self._policy.load_weights(state.tensors_of("policy"))
        self._critic.load_state(state.tensors_of("critic"))
        self._policy_training.load_optimizer_state(state.tensors_of("policy_optimizer"), values["policy_updates"])
        self._critic_training.load_optimizer_state(state.tensors_of("critic_optimizer"), values["critic_updates"])
        if self._ptx is not None:
            self._ptx.load_state_dict(values["ptx"])

    def _without_gradient(
        self, compute: Callable[[SequenceBatch], Tensor], prompts: Sequence[TokenIds], responses: Sequence[TokenIds]
    ) -> list[PerToken]:
        """`compute` maps a micro-batch to (M, R); its rows come back ragged, in the order of `responses`."""
        return evaluate_in_micro_batches(
            compute,
            prompts,
            responses,
            token_budget=self._budget,
            pad_id=self._backbone.pad_id,
            device=self._backbone.device,
        )

    def _importance(self, experience: Experience) -> tuple[Sequence[PerToken], Sequence[PerToken] | None]:
        """Log-probs at the centre of the clip, and the weights that correct the sampler's (see `policy_losses`)."""
        cap = self._algorithm.importance_cap
        if cap is None:
            return experience.behavior_logprobs, None
        proximal = self.logprobs(experience.prompts, experience.responses)
        pairs = zip(proximal, experience.behavior_logprobs, strict=True)
        return proximal, [_token_weights(start, behavior, cap) for start, behavior in pairs]

    def _minibatches(self, count: int, step: int) -> Iterator[list[int]]:
        """Every epoch a fresh order, a function of seed, step and epoch alone."""
        for epoch in range(self._algorithm.epochs):
            order = np.random.default_rng([self._seed, step, epoch]).permutation(count)
            for rows in np.array_split(order, min(self._algorithm.minibatches, count)):
                yield rows.tolist()

    def _minibatch(
        self, experience: Experience, rows: list[int], proximal: Sequence[PerToken], weights: Sequence[PerToken] | None
    ) -> dict[str, float]:
        """One optimizer step of policy and critic; gradients accumulate over micro-batches."""
        prompts, responses = [experience.prompts[i] for i in rows], [experience.responses[i] for i in rows]
        token_count = sum(len(response) for response in responses)
        totals: Sums = {}
        padding: list[tuple[int, int]] = []
        for indices, batch in self._micro_batches(prompts, responses):
            chosen = [rows[i] for i in indices]
            columns = _columns(experience, proximal, chosen, batch)
            importance = None if weights is None else _pad_like([weights[i] for i in chosen], batch)
            _add(totals, self._policy_backward(columns, importance, token_count))
            _add(totals, self._critic_backward(columns, token_count))
            padding.append((batch.input_ids.numel(), int(batch.attention_mask.sum())))
        metrics = _to_floats(totals)
        metrics |= self._ptx_backward()
        metrics |= self._step(metrics["loss/policy"] + metrics.get("loss/ptx", 0.0), metrics["loss/value"])
        padded, real = map(sum, zip(*padding, strict=True))
        metrics["perf/padding_waste"] = 1.0 - real / padded
        return metrics

    def _step(self, policy_loss: float, value_loss: float) -> dict[str, float]:
        """Moves policy and critic; neither, where one of the losses is not finite."""
        policy, critic = self._policy_training, self._critic_training
        metrics: dict[str, float] = {}
        try:
            require_finite(policy.steps_done, **{"policy loss": policy_loss, "critic loss": value_loss})
            metrics["policy/grad_norm"], metrics["policy/lr"] = policy.step(policy_loss)
            metrics["critic/grad_norm"], metrics["critic/lr"] = critic.step(value_loss)
        except NonFiniteLossError:
            policy.clear_gradients()
            critic.clear_gradients()
            raise
        return metrics

    def _policy_backward(self, columns: _Padded, importance: Tensor | None, token_count: int) -> Sums:
        mask = columns.batch.response_mask
        result = self._policy.logprobs(columns.batch, with_entropy=True)
        loss, metrics = clipped_policy_loss(
            result.logprobs,
            columns.behavior_logprobs,
            columns.advantages,
            mask,
            clip_range=self._algorithm.clip_range,
            dual_clip=self._algorithm.dual_clip,
            importance_weights=importance,
            token_count=token_count,
        )
        loss.backward()
        log_ratio = zero_outside(result.logprobs.detach() - columns.behavior_logprobs, mask)
        assert result.entropy is not None, "entropy was asked for"
        return {f"policy/{name}": value for name, value in metrics.items()} | {
            "loss/policy": loss.detach(),
            "policy/entropy": (result.entropy.detach() * mask).sum() / token_count,
            "policy/ratio_error_max": torch.expm1(log_ratio.clamp(max=MAX_LOG_RATIO)).abs().amax(),
        }

    def _critic_backward(self, columns: _Padded, token_count: int) -> Sums:
        values = self._critic.values(columns.batch)
        loss, metrics = clipped_value_loss(
            values,
            columns.values,
            columns.returns,
            columns.batch.response_mask,
            clip_range=self._algorithm.value_clip_range,
            token_count=token_count,
        )
        (self._algorithm.value_coefficient * loss).backward()
        return {"loss/value": loss.detach()} | {
            f"critic/{name}": metrics[name] for name in ("clipfrac", "squared_error")
        }

    def _ptx_backward(self) -> dict[str, float]:
        """Adds the gradient of the pretraining loss; reports the size of its gradient beside that of the PPO loss."""
        if self._ptx is None or self._algorithm.ptx is None:
            return {}
        before = self._policy_training.gradients()
        loss = self._text_backward(
            self._ptx.next(self._algorithm.ptx.sequences_per_minibatch), self._algorithm.ptx.coefficient
        )
        after = self._policy_training.gradients()
        ptx_norm = torch.stack([(b - a).square().sum() for a, b in zip(before, after, strict=True)]).sum().sqrt()
        ppo_norm = torch.stack([a.square().sum() for a in before]).sum().sqrt()
        ratio = ptx_norm / ppo_norm.clamp(min=1e-12)
        return _to_floats({"loss/ptx": loss, "policy/ptx_gradient_ratio": ratio})

    def _text_backward(self, texts: Sequence[TokenIds], coefficient: float) -> Tensor:
        """Loss of all texts; the gradient of `coefficient` times it is added."""
        predicted = sum(len(text) - 1 for text in texts)
        total = torch.zeros((), device=self._backbone.device)
        for indices in micro_batches([len(text) for text in texts], self._budget):
            batch = pad_texts([texts[i] for i in indices], pad_id=self._backbone.pad_id, device=self._backbone.device)
            loss, _ = ptx_loss(-self._policy.text_nll(batch), batch.response_mask, predicted)
            (coefficient * loss).backward()
            total += loss.detach()
        return total

    def _micro_batches(
        self, prompts: Sequence[TokenIds], responses: Sequence[TokenIds]
    ) -> Iterator[tuple[list[int], SequenceBatch]]:
        lengths = [len(p) + len(r) for p, r in zip(prompts, responses, strict=True)]
        for indices in micro_batches(lengths, self._budget):
            batch = pad_sequences(
                [prompts[i] for i in indices],
                [responses[i] for i in indices],
                pad_id=self._backbone.pad_id,
                device=self._backbone.device,
            )
            yield indices, batch


def _columns(experience: Experience, proximal: Sequence[PerToken], rows: list[int], batch: SequenceBatch) -> _Padded:
    def column(arrays: Sequence[PerToken]) -> Tensor:
        return _pad_like([arrays[i] for i in rows], batch)

    return _Padded(
        batch, column(proximal), column(experience.advantages), column(experience.values), column(experience.returns)
    )


def _pad_like(arrays: Sequence[NDArray[np.float32]], batch: SequenceBatch) -> Tensor:
    padded = np.zeros(tuple(batch.response_mask.shape), np.float32)
    for row, array in zip(padded, arrays, strict=True):
        row[: len(array)] = array
    return torch.from_numpy(padded).to(batch.input_ids.device)


def _token_weights(start: PerToken, behavior: PerToken, cap: float) -> PerToken:
    mask = torch.ones(1, len(start), dtype=torch.bool)
    # Copies: arrays from the object store are read-only, and torch has no read-only tensors.
    weights = truncated_importance_weights(torch.tensor(start)[None], torch.tensor(behavior)[None], mask, cap=cap)
    return weights[0].numpy()


def _is_maximum(name: str) -> bool:
    return name.endswith("_max")


def _add(totals: Sums, metrics: Sums) -> None:
    """Adds token means that share their minibatch's denominator; keeps the maximum of `_max` metrics."""
    for name, value in metrics.items():
        if name not in totals:
            totals[name] = value
        else:
            totals[name] = torch.maximum(totals[name], value) if _is_maximum(name) else totals[name] + value


def _to_floats(tensors: Sums) -> dict[str, float]:
    """All scalars in one transfer."""
    stacked = torch.stack([value.float() for value in tensors.values()]).tolist()
    return dict(zip(tensors, stacked, strict=True))


def _average(history: Sequence[Mapping[str, float]]) -> dict[str, float]:
    def combine(name: str) -> float:
        column = [row[name] for row in history]
        return max(column) if _is_maximum(name) else sum(column) / len(column)

    return {name: combine(name) for name in history[0]}
