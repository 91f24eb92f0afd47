"""TRL's DPOTrainer, behind one function. The only file of the stage that knows TRL.

TRL contributes the loss and its forward pass. Pairs arrive tokenized, with the log-probabilities of their responses
under the reference, so TRL loads no reference model. Quirks that are mended here, each until TRL does it itself: it
would tokenize and look for a cache of reference log-probs again; and it averages micro-batches, so pairs of a smaller
one would count more.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import torch
from torch.optim.lr_scheduler import LambdaLR
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer

from policies.backbone import Backbone
from policies.sequences import TokenIds
from rlhf.optimization import Schedule
from rlhf.trainers.trl_loop import OrderedTrainer, StepReport, TrlSettings, train_in_order


@dataclass(frozen=True, slots=True)
class PreferredPair:
    """Two responses to one prompt, the first preferred.

    Attributes:
        prompt: (P,) ids.
        chosen: (R,) ids of the preferred response, end of sequence included.
        rejected: (R,) ids of the other.
        reference_chosen: log pi_reference(chosen | prompt), nats per sequence.
        reference_rejected: The same of the other.
    """

    prompt: TokenIds
    chosen: TokenIds
    rejected: TokenIds
    reference_chosen: float
    reference_rejected: float

    @property
    def token_count(self) -> int:
        """Tokens that a pass over the pair reads; the prompt is read twice."""
        return 2 * len(self.prompt) + len(self.chosen) + len(self.rejected)


def train_dpo_with_trl(
    backbone: Backbone,
    pairs: Sequence[PreferredPair],
    order: Sequence[int],
    *,
    beta: float,
    optimizer: torch.optim.Optimizer,
    schedule: Schedule,
    settings: TrlSettings,
    first_step: int,
    on_step: Callable[[StepReport], None],
) -> None:
    """Takes every optimizer step from `first_step` to the end of `order`, each on the mean loss of its pairs.

        loss = -log sigmoid(beta * (log pi(chosen) / pi_ref(chosen) - log pi(rejected) / pi_ref(rejected)))

    (Rafailov et al. 2023, arXiv:2305.18290, eq. 7.)

    Args:
        backbone: The model; what of it requires gradients is what trains.
        pairs: All of them.
        order: Index into `pairs` of everything the whole run trains on, epochs included, in order.
        beta: Reward units per nat.
        optimizer: From `rlhf.optimization`, over the parameters that train.
        schedule: Learning-rate factor of each step.
        settings: See `TrlSettings`; an example is a pair.
        first_step: Steps that are done already.
        on_step: Called after each step; an exception from it ends training.

    Raises:
        NonFiniteLossError: before the step that a NaN or infinite loss or gradient would have spoiled.
    """
    remaining = order[first_step * settings.examples_per_step :]
    if not remaining:
        return
    arguments = settings.arguments(backbone.device, math.ceil(len(remaining) / settings.examples_per_step))

    def build(optimizers: tuple[torch.optim.Optimizer, LambdaLR]) -> OrderedTrainer:
        return _PreparedDpoTrainer(
            model=backbone.model,
            args=DPOConfig(**arguments, beta=beta, precompute_ref_log_probs=True),
            train_dataset=_dataset(pairs).select(remaining),
            processing_class=backbone.tokenizer,
            optimizers=optimizers,
        )

    train_in_order(backbone, build, optimizer=optimizer, schedule=schedule, first_step=first_step, on_step=on_step)


class _PreparedDpoTrainer(OrderedTrainer, DPOTrainer):
    """DPOTrainer on pairs that need no preparation, with every pair of a step of the same weight."""

    loss_is_scaled_for_ga = True

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """The micro-batch's share of the mean over the step's pairs."""
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        per_step = self.args.per_device_train_batch_size * self.args.gradient_accumulation_steps
        left = len(self.train_dataset) - self.state.global_step * per_step  # pyright: ignore[reportArgumentType] - sized
        return loss * (len(inputs["input_ids"]) // 2 / min(per_step, left))

    def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
        return dataset

    def _precompute_ref_logps(self, dataset: Any, *_: Any, **__: Any) -> Any:
        return dataset


def _dataset(pairs: Sequence[PreferredPair]) -> datasets.Dataset:
    return datasets.Dataset.from_dict(
        {
            "prompt_ids": [pair.prompt.tolist() for pair in pairs],
            "chosen_ids": [pair.chosen.tolist() for pair in pairs],
            "rejected_ids": [pair.rejected.tolist() for pair in pairs],
            "ref_chosen_logps": [pair.reference_chosen for pair in pairs],
            "ref_rejected_logps": [pair.reference_rejected for pair in pairs],
        }
    )
