"""TRL's SFTTrainer, behind one function. The only file of the stage that knows TRL.

TRL contributes the loss (output layer in tiles, token mean over the whole optimizer step). Tokenization is ours:
examples arrive with a completion mask.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import datasets
import torch
from torch.optim.lr_scheduler import LambdaLR
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from policies.backbone import Backbone
from rlhf.conversations import Example
from rlhf.forgetting.old_model import OldModel
from rlhf.optimization import Schedule
from rlhf.runtime.distributed import Ranks
from rlhf.trainers.trl_loop import (
    GradientPenalty,
    OrderedTrainer,
    ShareOfSteps,
    StepReport,
    TrlSettings,
    train_in_order,
)


def train_with_trl(
    backbone: Backbone,
    examples: Sequence[Example],
    order: Sequence[int],
    *,
    optimizer: torch.optim.Optimizer,
    schedule: Schedule,
    settings: TrlSettings,
    first_step: int,
    on_step: Callable[[StepReport], None],
    old_model: OldModel | None = None,
    weight_penalty: GradientPenalty | None = None,
) -> None:
    """Takes every optimizer step from `first_step` to the end of `order`.

    Args:
        backbone: The model; what of it requires gradients is what trains.
        examples: Demonstrations.
        order: Index into `examples` of everything the whole run trains on, epochs included, in order; step s takes
            `order[s * examples_per_step : (s + 1) * examples_per_step]`.
        optimizer: From `rlhf.optimization`, over the parameters that train.
        schedule: Learning-rate factor of each step.
        settings: See `TrlSettings`.
        first_step: Steps that are done already.
        on_step: Called after each step, with the loss in nats per learned token; an exception from it ends training.
        old_model: Its divergence is added to the loss.
        weight_penalty: Its gradient is added to each step's, once for all ranks.

    Raises:
        NonFiniteLossError: before the step that a NaN or infinite loss or gradient would have spoiled.
    """
    remaining = order[first_step * settings.examples_per_step :]
    if not remaining:
        return
    steps = math.ceil(len(remaining) / settings.examples_per_step)

    def build(optimizers: tuple[torch.optim.Optimizer, LambdaLR]) -> _OrderedSftTrainer:
        trainer = _OrderedSftTrainer(
            model=backbone.model,
            args=SFTConfig(**settings.arguments(backbone.device, steps), completion_only_loss=True),
            train_dataset=_dataset(examples),
            processing_class=backbone.tokenizer,
            optimizers=optimizers,
        )
        trainer.old_model, trainer.weight_penalty = old_model, weight_penalty
        ranks = settings.ranks
        if ranks.is_alone:
            trainer.use_order(remaining)
        else:
            own, weights = share_of_steps(examples, remaining, ranks, examples_per_step=settings.examples_per_step)
            trainer.use_order(own)
            trainer.share = ShareOfSteps(ranks, weights)
        return trainer

    train_in_order(backbone, build, optimizer=optimizer, schedule=schedule, first_step=first_step, on_step=on_step)


def share_of_steps(
    examples: Sequence[Example], order: Sequence[int], ranks: Ranks, *, examples_per_step: int
) -> tuple[list[int], list[float]]:
    """What one rank trains on, and how much of the learned tokens of each step that is.

    Args:
        examples: Demonstrations.
        order: Index into them, from the first step that is left.
        ranks: This rank among those that divide each step; they take turns along the order, which goes by length.
        examples_per_step: Examples of one step on all ranks.

    Returns:
        Indices into `examples`, step after step, and a share in [0, 1] for each step. A rank for which a last, short
        step leaves nothing gets that step's first example with share 0, because all ranks take every step.
    """
    own: list[int] = []
    shares: list[float] = []
    for start in range(0, len(order), examples_per_step):
        step = order[start : start + examples_per_step]
        mine = step[ranks.index :: ranks.count]
        learned, of_all = (sum(int(examples[index].loss_mask.sum()) for index in part) for part in (mine, step))
        own += mine or step[:1]
        shares.append(learned / of_all)
    return own, shares


class _OrderedSftTrainer(OrderedTrainer, SFTTrainer):
    """SFTTrainer that takes examples in the order given, and may add the divergence from an old model to the loss."""

    old_model: OldModel | None = None

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,  # noqa: FBT001, FBT002 - the signature is that of transformers
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """TRL's, with the penalty of this micro-batch: its share of the mean over the step's learned tokens."""
        if self.old_model is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        assert num_items_in_batch is not None, "TRL counts the learned tokens of a step"
        with self.old_model.watch() as states:
            loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        penalty = self.old_model.penalty(states[0], inputs["input_ids"], inputs["labels"]) / num_items_in_batch
        self.pass_penalty = penalty.detach()
        return loss + penalty

    def use_order(self, order: Sequence[int]) -> None:
        """Trains on these examples, in this order; after construction, so that each is prepared only once."""
        self.train_dataset = self.train_dataset.select(order)


def _dataset(examples: Sequence[Example]) -> datasets.Dataset:
    return datasets.Dataset.from_dict(
        {
            "input_ids": [example.token_ids.tolist() for example in examples],
            "completion_mask": [example.loss_mask.astype(int).tolist() for example in examples],
        }
    )
