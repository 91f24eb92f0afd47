"""The learner role: policy and critic of PPO, their optimizers, and the update of one step.

Owns epochs, minibatches, the PPO-ptx mix and the optimizer steps. It samples nothing, scores nothing and knows no Ray.
Losses are normalised by the token count of their minibatch, so gradients do not depend on how samples fall into
micro-batches, nor on how many ranks share them: every rank is called with the same arguments, computes its rows of each
minibatch, and takes the same step on the sum of all gradients.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from policies.causal import CausalPolicy
from policies.sequences import SequenceBatch
from policies.sharding import whole_tensors
from policies.value import ValueModel
from rlhf.algorithms.language_model_losses import balanced_coefficient, ptx_loss
from rlhf.algorithms.masked import zero_outside
from rlhf.algorithms.policy_losses import MAX_LOG_RATIO, clipped_policy_loss, truncated_importance_weights
from rlhf.algorithms.value_losses import clipped_value_loss
from rlhf.config import AlgorithmConfig, PpoConfig
from rlhf.config.retention import EwcRetention
from rlhf.conversations import Example
from rlhf.experience import Experience
from rlhf.forgetting.weight_anchor import anchor_weights
from rlhf.metric_sums import Sums, add_metrics, average, over_ranks, to_floats
from rlhf.micro_batches import MicroBatches
from rlhf.optimization import NonFiniteLossError, require_finite
from rlhf.runtime.distributed import ALONE, Ranks
from rlhf.runtime.training_state import TrainingState, with_owner
from rlhf.text_stream import TextStream, perplexity
from rlhf.trained_model import TrainedModel
from rollout.types import PerToken, TokenIds


@dataclass(frozen=True, slots=True)
class _Padded:
    """The columns of a micro-batch beside its token batch, (M, R); values and returns where there is a critic."""

    batch: SequenceBatch
    behavior_logprobs: Tensor
    advantages: Tensor
    values: Tensor | None
    returns: Tensor | None


class Learner:
    """Updates policy and critic from experience (Schulman et al. 2017), with the pretraining mix of Ouyang et al. 2022.

    Args:
        policy: Trainable policy.
        critic: Trainable value model; either a head on the policy's trunk, which then trains on both losses in one
            pass, or it shares no trainable parameter with the policy. None exactly where `algorithm.advantages` needs
            none.
        config: The run's configuration; `algorithm`, the optimizers, `micro_batch_tokens`, `steps` and `seed` are read.
        ptx: Pretraining text; required exactly when `algorithm.ptx` is set.
        old: Examples of `algorithm.retention.data`; there are some exactly where it is set.
        ranks: Those that compute each update together; all are built and called alike.
    """

    def __init__(
        self,
        policy: CausalPolicy,
        critic: ValueModel | None,
        *,
        config: PpoConfig,
        ptx: TextStream | None = None,
        old: Sequence[Example] = (),
        ranks: Ranks = ALONE,
    ) -> None:
        assert (critic is not None) == config.has_critic, "a critic belongs to algorithm.advantages.kind=gae"
        assert (ptx is None) == (config.algorithm.ptx is None), "a pretraining stream belongs to algorithm.ptx"
        assert bool(old) == isinstance(config.algorithm.retention, EwcRetention), (
            "old rows belong to retention.kind=ewc"
        )
        self._policy, self._critic, self._ptx, self._ranks = policy, critic, ptx, ranks
        self._algorithm: AlgorithmConfig = config.algorithm
        self._backbone, self._seed, self._budget = policy.backbone, config.seed, config.micro_batch_tokens
        self._passes = MicroBatches(policy.backbone, token_budget=self._budget, ranks=ranks)
        if config.activation_checkpointing:
            for backbone in {model.backbone for model in (policy, critic) if model is not None}:
                backbone.checkpoint_activations()
        updates = config.steps * config.algorithm.epochs * config.algorithm.minibatches
        self._policy_training = TrainedModel("policy", policy.trainable(), config.optimizer, updates, ranks=ranks)
        self._anchor = anchor_weights(
            config.algorithm.retention,
            policy,
            [parameter for _, parameter in self._policy_training.parameters],
            old,
            seed=config.seed,
            ranks=ranks,
            total=self._policy_training.total,
        )
        self._trained = [self._policy_training]
        if critic is not None:
            self._trained.append(
                TrainedModel("critic", critic.trainable(), config.critic.optimizer, updates, ranks=ranks)
            )

    def values(self, prompts: Sequence[TokenIds], responses: Sequence[TokenIds]) -> list[PerToken]:
        """Value before each response token, (R_i,) float32 in reward units; needs a critic."""
        assert self._critic is not None, "there is no critic to ask"
        return self._passes.evaluate(self._critic.values, prompts, responses)

    def logprobs(self, prompts: Sequence[TokenIds], responses: Sequence[TokenIds]) -> list[PerToken]:
        """Log-probs of the response tokens under the current policy, (R_i,) float32, nats."""
        return self._passes.evaluate(lambda batch: self._policy.logprobs(batch).logprobs, prompts, responses)

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
        limit = self._algorithm.max_approx_kl
        minibatches = list(self._minibatches(len(experience), step))
        history: list[dict[str, float]] = []
        for rows in minibatches:
            history.append(self._minibatch(experience, rows, proximal, weights))
            if limit is not None and history[-1]["policy/approxkl"] > limit:
                break
        metrics = average(history)
        if limit is not None:
            metrics["policy/skipped_minibatches"] = float(self._skip(len(minibatches) - len(history)))
        del metrics["policy/ratio_error_max"]
        # The first minibatch is the only one whose ratios are taken before any weight of this step has moved.
        return metrics | {"policy/first_step_ratio_error": history[0]["policy/ratio_error_max"]}

    def publish(self) -> dict[str, Tensor]:
        """The policy weights that rollout workers need: the adapter's, or all of them; cut where layers are."""
        return self._policy.weights()

    def perplexity(self, texts: Sequence[str]) -> float:
        """Exp of the mean next-token loss over held-out text, at temperature 1: the alignment tax while training."""
        return perplexity(self._policy, texts, micro_batch_tokens=self._budget, ranks=self._ranks)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything of the learner that decides the next number: tensors, which share its memory, and plain values.

        Where layers are cut, the first rank has the whole tensors, copied to the CPU one by one, and the others none.
        """
        tensors = {
            **with_owner("policy", self._policy.weights()),
            **(with_owner("critic", self._critic.state()) if self._critic else {}),
        }
        values: dict[str, Any] = {"ptx": None if self._ptx is None else self._ptx.state_dict()}
        for model in self._trained:
            tensors |= with_owner(f"{model.name}_optimizer", model.optimizer_state())
            values[f"{model.name}_updates"] = model.steps_done
        return whole_tensors(tensors, keep=self._ranks.is_first), values

    def load_state(self, state: TrainingState) -> None:
        """Continues from `state`; `state.values["learner"]` holds the plain values."""
        values = state.values["learner"]
        self._policy.load_weights(state.tensors_of("policy"))
        if self._critic is not None:
            self._critic.load_state(state.tensors_of("critic"))
        for model in self._trained:
            moments = state.tensors_of(f"{model.name}_optimizer")
            model.load_optimizer_state(moments, values[f"{model.name}_updates"])
        if self._ptx is not None:
            self._ptx.load_state_dict(values["ptx"])

    def _skip(self, minibatches: int) -> int:
        """Lets the schedules pass over minibatches that are not taken: the rate reaches 0 with the run's last step."""
        for model in self._trained:
            model.steps_done += minibatches
        return minibatches

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
        for part in self._passes.over(prompts, responses):
            chosen = [rows[i] for i in part.indices]
            columns = _columns(experience, proximal, chosen, part.batch)
            importance = None if weights is None else _pad_like([weights[i] for i in chosen], part.batch)
            add_metrics(totals, self._backward(columns, importance, token_count))
            real = int(part.batch.attention_mask.sum())
            computed = real if self._backbone.packs_rows else part.batch.input_ids.numel()
            padding.append((computed, 0 if part.is_ghost else real))
        metrics = to_floats(over_ranks(totals, self._ranks))
        for model in self._trained:
            model.sum_gradients()
        metrics |= self._ptx_backward() | self._pull_back()
        policy_loss = sum(metrics.get(f"loss/{part}", 0.0) for part in ("policy", "ptx", "retention"))
        metrics |= self._step(policy_loss, metrics.get("loss/value", 0.0))
        computed, needed = self._ranks.total(*map(sum, zip(*padding, strict=True)))
        metrics["perf/padding_waste"] = 1.0 - needed / computed
        return metrics

    def _step(self, policy_loss: float, value_loss: float) -> dict[str, float]:
        """Moves policy and critic; neither, where one of the losses is not finite."""
        losses = {"policy": policy_loss, "critic": value_loss}
        if not math.isfinite(policy_loss + value_loss):
            self._collect_gradients()  # The error names the tensor.
        metrics: dict[str, float] = {}
        try:
            for model in self._trained:
                require_finite(model.steps_done, model.parameters, **{f"{model.name} loss": losses[model.name]})
            for model in self._trained:
                metrics[f"{model.name}/grad_norm"], metrics[f"{model.name}/lr"] = model.step(losses[model.name])
        except NonFiniteLossError:
            for model in self._trained:
                model.clear_gradients()
            raise
        return metrics

    def _collect_gradients(self) -> None:
        """Makes room for the gradients of another backward pass."""
        for model in self._trained:
            model.collect_gradients()

    def _backward(self, columns: _Padded, importance: Tensor | None, token_count: int) -> Sums:
        """Adds the gradients of both losses: in one pass over a shared trunk, else in one over each model."""
        self._collect_gradients()
        states = self._policy.states(columns.batch)
        loss, metrics = self._policy_loss(states, columns, importance, token_count)
        if self._critic is None:
            loss.backward()
            return metrics
        if self._critic.trains_body:
            loss.backward()
            loss, states = torch.zeros_like(loss), self._critic.states(columns.batch)
        value_loss, value_metrics = self._value_loss(states, columns, token_count)
        (loss + self._algorithm.value_coefficient * value_loss).backward()
        return metrics | value_metrics

    def _policy_loss(
        self, states: Tensor, columns: _Padded, importance: Tensor | None, token_count: int
    ) -> tuple[Tensor, Sums]:
        mask = columns.batch.response_mask
        result = self._policy.logprobs_of(states, columns.batch, with_entropy=True)
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
        log_ratio = zero_outside(result.logprobs.detach() - columns.behavior_logprobs, mask)
        assert result.entropy is not None, "entropy was asked for"
        return loss, {f"policy/{name}": value for name, value in metrics.items()} | {
            "loss/policy": loss.detach(),
            "policy/entropy": (result.entropy.detach() * mask).sum() / token_count,
            "policy/ratio_error_max": torch.expm1(log_ratio.clamp(max=MAX_LOG_RATIO)).abs().amax(),
        }

    def _value_loss(self, states: Tensor, columns: _Padded, token_count: int) -> tuple[Tensor, Sums]:
        values, returns = columns.values, columns.returns
        assert self._critic is not None, "there is no critic to train"
        assert values is not None, "a critic has values"
        assert returns is not None, "a critic has returns"
        loss, metrics = clipped_value_loss(
            self._critic.values_of(states, columns.batch),
            values,
            returns,
            columns.batch.response_mask,
            clip_range=self._algorithm.value_clip_range,
            token_count=token_count,
        )
        return loss, {"loss/value": loss.detach()} | {
            f"critic/{name}": metrics[name] for name in ("clipfrac", "squared_error")
        }

    def _ptx_backward(self) -> dict[str, float]:
        """Adds the gradient of the pretraining loss, weighed; reports its size beside that of the PPO loss."""
        if self._ptx is None or self._algorithm.ptx is None:
            return {}
        config, policy = self._algorithm.ptx, self._policy_training
        # Moved aside, not copied: two gradients at a time are the least with which both can be measured.
        ppo_norm, of_ppo = policy.gradient_norm(), policy.take_gradients()
        loss = self._text_backward(self._ptx.next(config.sequences_per_minibatch), config.coefficient or 1.0)
        metrics = {"loss/ptx": loss}
        if config.gradient_ratio is not None:
            weight = balanced_coefficient(policy.gradient_norm(), ppo_norm, config.gradient_ratio)
            policy.scale_gradients(weight)
            metrics["policy/ptx_coefficient"] = weight
        metrics["policy/ptx_gradient_ratio"] = policy.gradient_norm() / ppo_norm.clamp(min=1e-12)
        policy.add_gradients(of_ppo)
        return to_floats(metrics)

    def _pull_back(self) -> dict[str, float]:
        """Adds the gradient of `algorithm.retention`: of weights alone, so once, and the same on every rank."""
        if self._anchor is None:
            return {}
        self._policy_training.collect_gradients()
        return {"loss/retention": self._anchor.add()}

    def _text_backward(self, texts: Sequence[TokenIds], coefficient: float) -> Tensor:
        """Loss of all texts; the gradient of `coefficient` times it, summed over ranks, is what has accumulated."""
        predicted = sum(len(text) - 1 for text in texts)
        total = torch.zeros((), device=self._backbone.device)
        # The first token of a text is its prompt (see `policies.sequences.pad_texts`).
        for part in self._passes.over([text[:1] for text in texts], [text[1:] for text in texts]):
            self._collect_gradients()
            loss, _ = ptx_loss(-self._policy.text_nll(part.batch), part.batch.response_mask, predicted)
            (coefficient * loss).backward()
            total += loss.detach()
        self._policy_training.sum_gradients()
        self._ranks.add_up(total)
        return total


def _columns(experience: Experience, proximal: Sequence[PerToken], rows: list[int], batch: SequenceBatch) -> _Padded:
    def column(arrays: Sequence[PerToken]) -> Tensor:
        return _pad_like([arrays[i] for i in rows], batch)

    values, returns = (column(arrays) if arrays else None for arrays in (experience.values, experience.returns))
    return _Padded(batch, column(proximal), column(experience.advantages), values, returns)


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
