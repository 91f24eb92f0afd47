"""One decode step: the newest tokens of the open responses in, the logits of their next ones out.

Owns the step through the model's own modules. The same step without Python between its operations is `traced_step`.
"""

from collections.abc import Callable

from torch import Tensor

from policies.backbone import Backbone
from rollout.slot_cache import SlotCache

DecodeStep = Callable[[Tensor, Tensor, Tensor, SlotCache], Tensor]
"""(tokens, positions, mask, cache) -> logits (B, V) float32.

Tokens and positions are (B, 1); the mask is what `SlotCache.open_column` has returned, of the cache that the step reads
and writes.
"""


def plain_step(backbone: Backbone) -> DecodeStep:
    """The step of a model with what adapter is active."""

    def step(tokens: Tensor, positions: Tensor, mask: Tensor, cache: SlotCache) -> Tensor:
        states = backbone.hidden_states(tokens, mask, positions, cache=cache)
        return backbone.output_layer(states[:, -1]).float()

    return step
