"""A key-value cache that is written in place, for transformers' `generate`.

Owns one third-party quirk: `DynamicCache` copies all keys and values of a layer for every new token (`torch.cat`),
and `StaticCache` attends over its unused tail and needs a 4-D mask. Remove this file when `DynamicCache` grows in
place.
"""

import torch
from torch import Tensor
from transformers import DynamicCache, PretrainedConfig
from transformers.cache_utils import DynamicLayer


class PreallocatedLayer(DynamicLayer):
    """Keys and values of one attention layer in buffers of fixed capacity; the model sees the filled part.

    Meant for decoding loops that only append; reordering rows, as beam search does, is not supported.

    Args:
        capacity_tokens: Longest sequence, prompt and response together.
    """

    _key_buffer: Tensor
    _value_buffer: Tensor

    def __init__(self, capacity_tokens: int) -> None:
        super().__init__()
        self.capacity_tokens = capacity_tokens

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocates the buffers once batch size, heads, dtype and device are known."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self._key_buffer = self._allocate(key_states)
        self._value_buffer = self._allocate(value_states)
        self.keys, self.values = self._key_buffer[:, :, :0], self._value_buffer[:, :, :0]
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *_args: object, **_kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Writes (B, heads, new tokens, head size) behind what is there; returns views of everything so far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        assert end <= self.capacity_tokens, f"key-value cache of {self.capacity_tokens} tokens cannot take token {end}"
        self._key_buffer[:, :, start:end] = key_states
        self._value_buffer[:, :, start:end] = value_states
        self.keys, self.values = self._key_buffer[:, :, :end], self._value_buffer[:, :, :end]
        return self.keys, self.values

    def _allocate(self, states: Tensor) -> Tensor:
        batch, heads, _, size = states.shape
        return torch.empty((batch, heads, self.capacity_tokens, size), dtype=states.dtype, device=states.device)


def preallocated_cache(config: PretrainedConfig, capacity_tokens: int) -> DynamicCache:
    """The cache `generate` would build for this architecture, with its growing layers replaced by preallocated ones.

    Sliding-window and recurrent layers stay as they are: their memory is bounded already.

    Args:
        config: The model's config.
        capacity_tokens: Longest sequence, prompt and response together.
    """
    cache = DynamicCache(config=config.get_text_config(decoder=True))
    cache.layers = [
        PreallocatedLayer(capacity_tokens) if type(layer) is DynamicLayer else layer for layer in cache.layers
    ]
    return cache
