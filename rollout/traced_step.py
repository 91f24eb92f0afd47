"""The decode step as one function of TorchScript: the model's operations, without Python between them.

Owns the trace: when a model has one, what is an input of it, and the proof that it computes what the model computes. Of
a step on two cores Python is a sixth with 32 rows and a third with few (30M parameters), and of all lanes (`lanes`) one
at a time can run it; a trace runs outside of Python's lock.

Weights, packed or not, and the cache are inputs, so a trace holds for every version of the policy and for any number of
rows and columns. A model whose code asks for more than that (how many rows there are, which expert is chosen) would be
traced wrongly, so a trace is used only if it gives the model's own logits on rows and columns it has not seen; else the
plain step stays. Bit for bit, because a run that is resumed decodes its first rollout without a trace.

`torch.jit.trace` is deprecated, without a successor that neither compiles for minutes nor keeps Python between the
operations. Without it, this file returns no step, and nothing else changes.
"""

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin, get_layer_types_and_kwargs

from policies.backbone import Backbone
from rollout.decode_step import DecodeStep, plain_step
from rollout.prefill import read_prompts
from rollout.slot_cache import SlotCache

logger = logging.getLogger(__name__)

_TRACED = (3, 5)
_COMPARED = (2, 4, 9, 3)
"""Prompt lengths of the rows that are traced, and of those on which trace and model are compared."""
_COMPARED_STEPS = 3
"""TorchScript optimises a function after its first calls, so later ones are compared, too."""


class TracedStep:
    """A trace of one model under one adapter.

    Args:
        backbone: The model, with the adapter active, or merged, that decoding will use.
        packed: The list from which its packed layers take their weights (`packed_linears`).

    Raises:
        TraceError: if the trace does not compute what the model computes.
    """

    def __init__(self, backbone: Backbone, packed: list[Tensor]) -> None:
        self._backbone, self._adapter = backbone, backbone.adapters.active
        types, settings = get_layer_types_and_kwargs(backbone.model.config.get_text_config(decoder=True))
        windows = sorted({(kind, own.get("sliding_window")) for kind, own in zip(types, settings, strict=True)})
        self._layers, self._windows = len(types), dict(windows)
        if len(windows) != len(self._windows):
            raise TraceError("its sliding windows differ")
        self._names = list(_tensors(backbone.model))
        self._function = self._trace(packed)
        self._require_same_logits(packed)

    def still_fits(self) -> bool:
        """Whether the model has the parameters and the adapter that it had when it was traced."""
        same_names = list(_tensors(self._backbone.model)) == self._names
        return same_names and self._backbone.adapters.active == self._adapter

    def with_weights(self, packed: Sequence[Tensor]) -> DecodeStep:
        """The step with the weights that the model holds now.

        Args:
            packed: Its packed weights.
        """
        weights = [*_tensors(self._backbone.model).values(), *packed]

        def step(tokens: Tensor, positions: Tensor, mask: Tensor, cache: SlotCache) -> Tensor:
            return self._function(*self._inputs(tokens, positions, mask, cache), *weights)

        return step

    def _inputs(self, tokens: Tensor, positions: Tensor, mask: Tensor, cache: SlotCache) -> list[Tensor]:
        return [tokens, positions, *self._masks(mask, cache.column), torch.tensor(cache.column), *cache.states()]

    def _masks(self, mask: Tensor, column: int) -> list[Tensor]:
        """What each kind of layer adds to its scores, in the order of `_windows`, (B, 1, 1, W) each."""
        dtype = self._backbone.model.dtype
        masks: list[Tensor] = []
        for window in self._windows.values():
            visible = mask
            if window is not None and window <= column:
                visible = mask.clone()
                visible[:, : column + 1 - window] = False
            added = torch.zeros(visible.shape, dtype=dtype).masked_fill_(~visible, torch.finfo(dtype).min)
            masks.append(added[:, None, None])
        return masks

    def _trace(self, packed: list[Tensor]) -> Callable[..., Tensor]:
        inputs = self._inputs(*_Decoding(self._backbone, _TRACED).next())
        weights = [*_tensors(self._backbone.model).values(), *packed]
        with warnings.catch_warnings():
            # It is deprecated, and warns of every question about a shape; whether that matters is found out below.
            warnings.simplefilter("ignore")
            traced = torch.jit.trace(self._written_down(packed), (*inputs, *weights), check_trace=False)
        return cast(Callable[..., Tensor], traced)

    def _require_same_logits(self, packed: list[Tensor]) -> None:
        traced, plain = self.with_weights(list(packed)), plain_step(self._backbone)
        decoding = _Decoding(self._backbone, _COMPARED)
        for _ in range(_COMPARED_STEPS):
            arguments = decoding.next()
            # Both write the same keys and values.
            if not torch.equal(traced(*arguments), plain(*arguments)):
                raise TraceError("the trace and the model differ")

    def _written_down(self, packed: list[Tensor]) -> Callable[..., Tensor]:
        """The step as a function of tensors alone, in the order of `_inputs` and the weights."""
        masks, states = len(self._windows), 2 * self._layers
        plain = plain_step(self._backbone)

        def step(tokens: Tensor, positions: Tensor, *others: Tensor) -> Tensor:
            added = dict(zip(self._windows, others[:masks], strict=True))
            column, rest = others[masks], others[masks + 1 :]
            weights, packed_weights = rest[states : states + len(self._names)], rest[states + len(self._names) :]
            with _weights_of(self._backbone.model, weights), _in_place_of(packed, packed_weights):
                cache = Cache(layers=[*_layers(rest[:states], column)])
                # An architecture with one kind of layer takes the mask itself.
                mask = added if len(added) > 1 else others[0]
                return plain(tokens, positions, cast(Tensor, mask), cast(SlotCache, cache))

        return step


class TraceError(RuntimeError):
    """A trace computes something else than the model."""


def traced_step(backbone: Backbone, packed: list[Tensor]) -> TracedStep | None:
    """A trace where the model has one that computes the same; arguments as `TracedStep`'s."""
    if backbone.device.type != "cpu" or backbone.is_quantized or backbone.virtual_tokens:
        return None
    try:
        return TracedStep(backbone, packed)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, RuntimeError, NotImplementedError) as error:
        # Whatever the model's code does not expect under a tracer: the plain step remains.
        logger.info("decode steps of %s are not traced: %s", type(backbone.model).__name__, error)
        return None


class _TracedLayer(CacheLayerMixin):
    """One layer of the cache with the column as a tensor, which a trace takes for a variable."""

    is_sliding = False

    def __init__(self, keys: Tensor, values: Tensor, column: Tensor) -> None:
        super().__init__()
        self.keys, self.values, self._column = keys, values, column
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing is missing."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *_args: object, **_kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """As `SlotLayer.update`."""
        assert self.keys is not None
        assert self.values is not None
        for buffer, states in ((self.keys, key_states), (self.values, value_states)):
            torch.narrow(buffer, 2, cast(int, self._column), 1).copy_(states)
        return self.keys, self.values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Width and offset of the keys."""
        del query_length  # always 1
        return self.get_max_length(), 0

    def get_seq_length(self) -> int:
        """Not known to a trace; positions and masks are given."""
        return 0

    def get_max_length(self) -> int:
        """Width of the buffers."""
        assert self.keys is not None
        return self.keys.shape[2]


class _Decoding:
    """A few rows of made-up prompts, ready for a decode step."""

    def __init__(self, backbone: Backbone, lengths: Sequence[int]) -> None:
        # Of the embedding: the output layer's weight may be packed away.
        self._vocabulary = cast(nn.Embedding, backbone.model.get_input_embeddings()).num_embeddings
        prompts = [(np.arange(n, dtype=np.int32) * 7 + row + 1) % self._vocabulary for row, n in enumerate(lengths)]
        layers = backbone.model.config.get_text_config(decoder=True).num_hidden_layers
        self._cache = SlotCache(layers=layers, slots=len(lengths), device=backbone.device)
        for prompt in read_prompts(backbone, prompts):
            self._cache.insert(prompt.layers, [prompt.row], prompt.tokens)
        self._positions = torch.tensor(lengths)[:, None]

    def next(self) -> tuple[Tensor, Tensor, Tensor, SlotCache]:
        """Arguments of the next step."""
        positions = self._positions.clone()
        self._positions += 1
        return (positions * 5 + 3) % self._vocabulary, positions, self._cache.open_column(), self._cache


def _layers(states: Sequence[Tensor], column: Tensor) -> list[CacheLayerMixin]:
    pairs = zip(states[::2], states[1::2], strict=True)
    return [_TracedLayer(keys, values, column) for keys, values in pairs]


def _places(model: nn.Module) -> dict[str, list[tuple[dict[str, Tensor], str]]]:
    """Where each parameter and buffer hangs, by its first name; tied ones hang in several places."""
    names: dict[int, str] = {}
    places: dict[str, list[tuple[dict[str, Tensor], str]]] = {}
    for prefix, module in model.named_modules():
        for held in (cast(dict[str, Tensor], module._parameters), cast(dict[str, Tensor], module._buffers)):
            for key, tensor in held.items():
                if tensor is not None:
                    name = names.setdefault(id(tensor), f"{prefix}.{key}")
                    places.setdefault(name, []).append((held, key))
    return places


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, each once."""
    return {name: held[key].detach() for name, ((held, key), *_) in _places(model).items()}


@contextmanager
def _weights_of(model: nn.Module, others: Sequence[Tensor]) -> Iterator[None]:
    """Puts other tensors in the places of all parameters and buffers; `torch.func` would refuse to under a tracer."""
    places = _places(model).values()
    kept = [held[key] for ((held, key), *_) in places]
    try:
        for own, tensor in zip(places, others, strict=True):
            for held, key in own:
                held[key] = tensor
        yield
    finally:
        for own, tensor in zip(places, kept, strict=True):
            for held, key in own:
                held[key] = tensor


@contextmanager
def _in_place_of(own: list[Tensor], others: Sequence[Tensor]) -> Iterator[None]:
    kept = list(own)
    own[:] = others
    try:
        yield
    finally:
        own[:] = kept
