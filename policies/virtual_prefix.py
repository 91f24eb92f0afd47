"""Virtual tokens before every row of a model, whatever they were learned as.

Owns how they enter a forward pass. Causal attention lets no virtual token see what follows it, so n of them are the
same n keys and values in every layer for every row: those of prefix tuning are learned themselves, those of a soft
prompt are what the frozen model computes from its embeddings. A pass over a body begins with a cache that holds them:

    keys      v0 v1 .. v(n-1) | x0 x1 .. x(T-1)     the body returns states of x alone
    position   0  1 ..  n-1   |  n n+1 .. n+T-1

Right padding stays behind everything; under left padding, masks and positions of the caller keep the padding out. What
the virtual tokens are is the sources' business (`policies.virtual_tokens`, `policies.tuners.mix_and_match`).
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import get_layer_types_and_kwargs

KeysAndValues = tuple[Tensor, Tensor]
"""Of one layer, each (1, heads, n, head size)."""
PrefixStates = Sequence[KeysAndValues]
"""By layer."""
PrefixSource = Callable[[], PrefixStates | None]
"""The virtual tokens that are in force now; None if there are none."""

_ATTRIBUTE = "virtual_prefix"


class BodyPrefix:
    """What stands before the rows of one body."""

    def __init__(self, body: nn.Module) -> None:
        self._sources: list[PrefixSource] = []
        self._accepted = tuple(inspect.signature(body.forward).parameters)
        self._hook = body.register_forward_pre_hook(self._prepend, with_kwargs=True)

    @classmethod
    def of(cls, model: PreTrainedModel) -> Self:
        """The one of this model's body, made where there is none."""
        body = model.base_model
        if not hasattr(body, _ATTRIBUTE):
            setattr(body, _ATTRIBUTE, cls(body))
        return cast(Self, getattr(body, _ATTRIBUTE))

    @classmethod
    def remove(cls, model: PreTrainedModel) -> None:
        """Makes the model's body a plain one again."""
        body = model.base_model
        if hasattr(body, _ATTRIBUTE):
            cls.of(model)._hook.remove()
            delattr(body, _ATTRIBUTE)

    def add_source(self, source: PrefixSource) -> None:
        """Asks `source`, too, at every pass."""
        self._sources.append(source)

    def states(self) -> PrefixStates | None:
        """Keys and values of the virtual tokens that are in force; None without any."""
        return next((states for source in self._sources if (states := source()) is not None), None)

    def fill(self, cache: Cache, rows: int) -> int:
        """Writes the virtual tokens that are in force into an empty cache of so many rows; returns their number."""
        states = self.states() or ()
        for layer, (keys, values) in enumerate(states):
            cache.update(keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1), layer)
        return states[0][0].shape[2] if states else 0

    def _prepend(
        self, body: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """A pass that continues from a cache with content has had its virtual tokens, and is left alone."""
        del body
        kwargs = dict(zip(self._accepted, args, strict=False)) | kwargs
        cache = kwargs.get("past_key_values")
        if cache is not None and cache.get_seq_length():
            return None
        inputs = kwargs["inputs_embeds"] if kwargs.get("input_ids") is None else kwargs["input_ids"]
        cache = DynamicCache() if cache is None else cache
        virtual = self.fill(cache, len(inputs))
        if not virtual:
            return None
        changed: dict[str, Any] = {"past_key_values": cache}
        mask, positions = kwargs.get("attention_mask"), kwargs.get("position_ids")
        if mask is not None:
            changed["attention_mask"] = torch.cat([mask.new_ones(len(mask), virtual), mask], dim=1)
        if positions is not None:
            changed["position_ids"] = positions + virtual
        return (), kwargs | changed


def require_prefix_support(model: PreTrainedModel, kind: str, virtual_tokens: int) -> None:
    """Refuses architectures that so many virtual tokens cannot stand before exactly.

    Raises:
        ValueError: naming the architecture and what it lacks, or the context.
    """
    accepted = inspect.signature(model.base_model.forward).parameters
    types, _ = get_layer_types_and_kwargs(model.config.get_text_config(decoder=True))
    lacks = [name for name in ("past_key_values", "position_ids") if name not in accepted]
    other = sorted(set(types) - {"full_attention"})
    if lacks or other:
        reason = f"its body takes no {' and no '.join(lacks)}" if lacks else f"it has layers of {', '.join(other)}"
        raise ValueError(
            f"model.tuning.kind={kind}: {type(model).__name__} cannot have virtual tokens before its rows, {reason}; "
            "set model.tuning.kind=lora, ia3 or bottleneck"
        )
    limit = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    if limit is not None and virtual_tokens >= limit:
        raise ValueError(
            f"model.tuning.virtual_tokens={virtual_tokens} leave nothing of the model's context of {limit} tokens; "
            "lower it"
        )
