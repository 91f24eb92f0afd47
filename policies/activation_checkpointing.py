"""Activations of decoder layers that are computed again in the backward pass instead of kept (Chen et al. 2016).

Owns the use of transformers' own checkpointed layers. It is on for single forward passes only: switched on for good, as
`gradient_checkpointing_enable` does, it would take the cache from decoding, and it asks for train mode.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer


def checkpointed_layers(model: nn.Module) -> list[GradientCheckpointingLayer]:
    """The layers whose activations can be computed again.

    Raises:
        ValueError: the architecture has none.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, GradientCheckpointingLayer)]
    if not layers:
        raise ValueError(
            f"activation_checkpointing=true: {type(model).__name__} has no layers that transformers can checkpoint; "
            "set it to false, and lower micro_batch_tokens to save memory"
        )
    return layers


@contextmanager
def checkpointing(
    layers: list[GradientCheckpointingLayer], again: Callable[[], AbstractContextManager[Any]]
) -> Iterator[None]:
    """Inside, a forward pass with gradients keeps only the inputs of `layers`.

    Args:
        layers: From `checkpointed_layers`.
        again: Makes the context in which a layer is computed again, long after the forward pass has left its own:
            the same adapter on, the same attention.
    """

    def run(layer: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        # There is no dropout, so no random state to keep.
        contexts = (nullcontext(), again())
        return checkpoint(layer, *inputs, use_reentrant=False, preserve_rng_state=False, context_fn=lambda: contexts)

    for layer in layers:
        # The layer alone is in train mode, not the modules inside.
        layer.gradient_checkpointing = layer.training = True
        object.__setattr__(layer, "_gradient_checkpointing_func", run)
    try:
        yield
    finally:
        for layer in layers:
            layer.gradient_checkpointing = layer.training = False
            del layer._gradient_checkpointing_func
