"""The cuts of a configuration, made on a model."""

from collections.abc import Sequence

from transformers import PreTrainedModel

from policies.shrinking import every_nth, with_layers, with_width
from rlhf.config.distill import Shrink


def cut_model(model: PreTrainedModel, shrink: Shrink) -> PreTrainedModel:
    """The model without what a cut takes away: layers first, then heads and neurons of those that stay.

    Raises:
        ValueError: it asks for more than there is, or the architecture cannot be cut so.
    """
    layers = model.config.get_text_config().num_hidden_layers
    kept = shrink.layers if shrink.keep_every is None else every_nth(layers, shrink.keep_every)
    if kept is not None:
        model = with_layers(model, kept)
    if shrink.key_value_groups is not None or shrink.intermediate_size is not None:
        model = with_width(model, key_value_groups=shrink.key_value_groups, intermediate_size=shrink.intermediate_size)
    return model


def require_possible(model: PreTrainedModel, cuts: Sequence[Shrink]) -> None:
    """Makes all cuts one after the other, on copies, for what they refuse.

    Raises:
        ValueError: naming the first that cannot be made.
    """
    for number, shrink in enumerate(cuts):
        try:
            model = cut_model(model, shrink)
        except ValueError as error:
            raise ValueError(f"student.cuts.{number}: {error}") from error
