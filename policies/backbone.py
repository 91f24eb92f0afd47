"""Backbone = one causal language model in memory + tokenizer + adapters: token ids -> hidden states and logits.

Owns the split of a model into body and output layer (checked once against the model's own logits), whether padding is
computed, and what of the model trains. It does not load, shift, mask or sample.
"""

import inspect
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from transformers import (
    Cache,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.modeling_layers import GradientCheckpointingLayer

from policies.activation_checkpointing import checkpointed_layers, checkpointing
from policies.adapters import AdapterSet
from policies.attention import UnsupportedAttentionError, attention_implementation
from policies.base_identity import base_parameters, copy_exactly
from policies.final_layer import computed_only_at, final_parts, follow_readers
from policies.logprobs import before_response, response_states
from policies.packed_attention import PACKED
from policies.packed_rows import PackedRows
from policies.quantization import quantization_of
from policies.rms_norm import use_fast_norms
from policies.rotary_attention import use_fast_attention
from policies.round_sizes import round_places
from policies.sequences import SequenceBatch
from policies.sharding import shard_layers
from policies.virtual_prefix import BodyPrefix

_PROBE_TOKENS = 8
_PROBE_LENGTHS = (5, 8)

Context = Callable[[], AbstractContextManager[None]]

logger = logging.getLogger(__name__)


class Backbone:
    """One causal language model in memory, with its tokenizer and its adapters.

    Dropout is off for good (the model stays in eval mode) and nothing requires a gradient until `trainable` says so.

    Attributes:
        model: the transformers model; adapter layers hang inside it.
        tokenizer: its tokenizer.
        adapters: adapters on the model; all off outside `adapters.use`.
        device: where the model lives.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Wraps a model that is already on its device.

        Raises:
            ValueError: if body and output layer do not reproduce the model's logits, or the vocabulary is too small.
        """
        self.model = model.eval().requires_grad_(requires_grad=False)
        use_fast_norms(model)
        use_fast_attention(model)
        self.tokenizer = tokenizer
        self.adapters = AdapterSet(model, tokenizer)
        self.device = model.device
        self._body = model.base_model
        follow_readers(final_parts(cast(PreTrainedModel, self._body)))
        accepted = inspect.signature(self._body.forward).parameters
        self._takes_positions = "position_ids" in accepted
        self._takes_settings = any(parameter.kind is parameter.VAR_KEYWORD for parameter in accepted.values())
        self._logit_factor, self._logit_cap = _logit_scaling(model.config)
        _require_vocabulary(model, tokenizer)
        self._require_same_logits()
        self._checkpointed: list[GradientCheckpointingLayer] = []
        self._packs_exactly = self._compare_packed()

    @property
    def hidden_size(self) -> int:
        """D, width of the hidden states."""
        return cast(int, self.model.config.get_text_config().hidden_size)

    @property
    def vocabulary_size(self) -> int:
        """V, number of logits."""
        return cast(Tensor, self._output_embeddings().weight).shape[0]

    @property
    def context_tokens(self) -> int:
        """Longest sequence, prompt and response, in tokens: what the virtual tokens of its adapters leave."""
        limit = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        return int(limit or min(self.tokenizer.model_max_length, 2**31 - 1)) - self.most_virtual_tokens

    @property
    def most_virtual_tokens(self) -> int:
        """Most virtual tokens that one of its adapters puts before every row; 0 for most methods."""
        return max((self.adapters.virtual_tokens(name) for name in self.adapters.names), default=0)

    @property
    def virtual_tokens(self) -> int:
        """Virtual tokens before every row under the adapter that is active now."""
        return self.adapters.virtual_tokens(self.adapters.active)

    def fill_virtual_tokens(self, cache: Cache, rows: int) -> None:
        """Writes the active adapter's virtual tokens into an empty cache, for whoever counts its columns."""
        if self.virtual_tokens:
            BodyPrefix.of(self.model).fill(cache, rows)

    @property
    def pad_id(self) -> int:
        """Id of the padding token."""
        return cast(int, self.tokenizer.pad_token_id)

    @property
    def is_quantized(self) -> bool:
        """Whether linear layers are held in 8 or 4 bits."""
        return quantization_of(self.model) != "none"

    @property
    def fingerprint(self) -> str:
        """Identity of the base weights (`policies.base_identity.base_fingerprint`); reads all of them."""
        return self.adapters.fingerprint

    def hidden_states(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        position_ids: Tensor | None = None,
        *,
        cache: Cache | None = None,
        read: Tensor | None = None,
    ) -> Tensor:
        """Last hidden states of the body, without logits.

        Args:
            input_ids: (M, T).
            attention_mask: (M, T), True at real tokens; None for right-padded rows, where causal attention alone
                keeps the padding away from every real token and the fastest attention kernels apply.
            position_ids: (M, T), needed for left-padded rows; None counts from 0.
            cache: Keys and values of what came before; those of `input_ids` are added to it.
            read: (M, T), True at tokens whose state is needed; others are arbitrary, too. None needs all.

        Returns:
            (M, T, D) in the precision of the model; arbitrary at padding.
        """
        options: dict[str, Tensor | Cache] = {}
        if self._takes_positions and position_ids is not None:
            options["position_ids"] = position_ids
        if cache is not None:
            options["past_key_values"] = cache
        with self._end_at(read)():
            return self._body(
                input_ids=input_ids, attention_mask=attention_mask, use_cache=cache is not None, **options
            ).last_hidden_state

    @property
    def packs_rows(self) -> bool:
        """Whether the layers compute no padding of right-padded rows (`policies.packed_attention`).

        So it is where the architecture's attention is nothing but causal, `attention` is sdpa, and no adapter puts
        virtual tokens before the rows.
        """
        return self._packs_exactly and self._attention == "sdpa" and not self.most_virtual_tokens

    def row_states(self, input_ids: Tensor, mask: Tensor, *, read: Tensor | None = None) -> Tensor:
        """(M, T, D) last hidden states of right-padded rows, arbitrary at padding.

        Args:
            input_ids: (M, T).
            mask: (M, T), True at real tokens.
            read: (M, T), True at tokens whose state is needed; others are arbitrary, too. None needs all.
        """
        if not self.packs_rows:
            return self._padded(input_ids, self._end_at(read))
        rows = PackedRows.of(mask)
        return self._packed_states(input_ids, rows, self._end_at(None if read is None else rows.pack(read)))

    def response_states(self, batch: SequenceBatch) -> Tensor:
        """(M, R, D) hidden states that predict each response token of a right-padded batch."""
        hidden = self.row_states(batch.input_ids, batch.attention_mask, read=before_response(batch))
        return response_states(hidden, batch)

    def output_layer(self, states: Tensor) -> Tensor:
        """(..., D) hidden states -> (..., V) logits, with the scaling and soft cap that the architecture applies."""
        logits = self._output_embeddings()(states)
        if self._logit_factor != 1.0:
            logits = logits * self._logit_factor
        if self._logit_cap is not None:
            logits = torch.tanh(logits / self._logit_cap) * self._logit_cap
        return logits

    def checkpoint_activations(self) -> None:
        """From now on, passes over rows with gradients compute layers again instead of keeping their activations.

        Raises:
            ValueError: the architecture does not support it, or an adapter has virtual tokens.
        """
        if self.most_virtual_tokens:
            raise ValueError(
                "activation_checkpointing=true: a layer that is computed again would not see the adapter's virtual "
                "tokens; set it to false, or choose a model.tuning.kind without them"
            )
        self._checkpointed = checkpointed_layers(self.model)

    def shard(self, device: torch.device) -> None:
        """Cuts the layers over the processes of the default group (`policies.sharding`) and moves to `device`.

        To be called once, when all adapters are there and before anything trains; adapters stay whole.

        Raises:
            ValueError: the architecture has no layers that are known as such.
        """
        adapters = self.adapters
        adapters.keep_fingerprint()
        whole = {parameter for name in adapters.names for _, parameter in adapters.parameters(name)}
        shard_layers(self.model, whole_parameters=whole, device=device)
        self.device = device

    def trainable(self, adapter: str | None, *, body_only: bool = False) -> list[tuple[str, Parameter]]:
        """Lets gradients into one adapter, or into the model itself, and returns what trains.

        Args:
            adapter: name of the adapter; None trains the base weights.
            body_only: leaves an output layer with weights of its own frozen (a critic has no use for it).

        Raises:
            ValueError: if the base is to train beside adapters (it would change under them).
        """
        if adapter is not None:
            return self.adapters.trainable(adapter)
        if self.adapters.names:
            raise ValueError(
                f"model.tuning.kind=full: the model carries the adapters {list(self.adapters.names)}, which a changing "
                "base would break; set model.tuning.kind to the adapter's, or export (merge) it first"
            )
        parameters = self._base_parameters(body_only=body_only)
        for _, parameter in parameters:
            parameter.requires_grad = True
        return parameters

    def weights(self, adapter: str | None, *, body_only: bool = False) -> dict[str, Tensor]:
        """Tensors of one adapter, or of the model itself; they share memory with the model."""
        if adapter is not None:
            return self.adapters.state(adapter)
        return {name: parameter.detach() for name, parameter in self._base_parameters(body_only=body_only)}

    @torch.no_grad()
    def load_weights(self, adapter: str | None, tensors: Mapping[str, Tensor], *, body_only: bool = False) -> None:
        """Overwrites what `weights` returned.

        Raises:
            ValueError: if names or shapes differ.
        """
        if adapter is not None:
            self.adapters.load_state(adapter, tensors)
        else:
            copy_exactly(dict(self._base_parameters(body_only=body_only)), tensors, what="model weights")

    @property
    def _attention(self) -> str:
        return cast(str, self.model.config.get_text_config(decoder=True)._attn_implementation)

    def _end_at(self, read: Tensor | None) -> Context:
        """Makes contexts in which the end of the decoder computes these tokens of a pass alone."""
        # Virtual tokens are computed by a pass of their own inside the pass.
        if read is None or self.virtual_tokens:
            return nullcontext
        return partial(computed_only_at, round_places(read.reshape(-1)))

    def _padded(self, input_ids: Tensor, reading: Context = nullcontext) -> Tensor:
        with reading(), self._checkpointing(reading):
            return self.hidden_states(input_ids, None, _positions(input_ids))

    def _checkpointing(self, reading: Context) -> AbstractContextManager[None]:
        if not self._checkpointed or not torch.is_grad_enabled():
            return nullcontext()
        return checkpointing(self._checkpointed, partial(self._as_now, self.adapters.active, self._attention, reading))

    @contextmanager
    def _as_now(self, adapter: str | None, implementation: str, reading: Context) -> Iterator[None]:
        with self.adapters.use(adapter), attention_implementation(self.model, implementation), reading():
            yield

    def _packed_states(self, input_ids: Tensor, rows: PackedRows, reading: Context = nullcontext) -> Tensor:
        ids, positions = rows.pack(input_ids), rows.pack(_positions(input_ids))
        with attention_implementation(self.model, PACKED), reading(), self._checkpointing(reading):
            packed = self._body(input_ids=ids, position_ids=positions, use_cache=False, packing=rows).last_hidden_state
        return rows.unpack(packed)

    def _output_embeddings(self) -> nn.Module:
        # Asked for each time, because an adapter may have wrapped it.
        return cast(nn.Module, self.model.get_output_embeddings())

    def _base_parameters(self, *, body_only: bool) -> list[tuple[str, Parameter]]:
        return list(base_parameters(self._body if body_only else self.model))

    @property
    def _tolerance(self) -> float:
        return 1e-4 if self.model.dtype == torch.float32 else 2e-2

    @torch.no_grad()
    def _require_same_logits(self) -> None:
        ids = (torch.arange(_PROBE_TOKENS, device=self.device) % self.vocabulary_size).unsqueeze(0)
        expected = self.model(input_ids=ids, use_cache=False).logits.float()
        received = self.output_layer(
            self.hidden_states(ids, None, torch.arange(_PROBE_TOKENS, device=self.device)[None])
        ).float()
        if not torch.allclose(received, expected, rtol=self._tolerance, atol=self._tolerance):
            raise ValueError(
                f"model.path={self.model.name_or_path!r}: body and output layer of {type(self.model).__name__} differ "
                f"from its logits by {float((received - expected).abs().max()):.2g}; this architecture is not supported"
            )

    @torch.no_grad()
    def _compare_packed(self) -> bool:
        """Whether every layer keeps the rows of a packed batch apart, and gives the states of the padded one."""
        if not (self._takes_positions and self._takes_settings and self._attention == "sdpa"):
            return False
        lengths = torch.tensor(_PROBE_LENGTHS, device=self.device)
        mask = torch.arange(_PROBE_TOKENS, device=self.device) < lengths[:, None]
        ids = torch.arange(mask.numel(), device=self.device).view(mask.shape) % self.vocabulary_size
        rows = PackedRows.of(mask)
        try:
            received = self._packed_states(ids, rows)[mask].float()
        except UnsupportedAttentionError as error:
            logger.info("padding is computed: %s", error)
            return False
        expected = self._padded(ids)[mask].float()
        is_everywhere = len(rows.layers) == self.model.config.get_text_config().num_hidden_layers
        tolerance = self._tolerance * float(expected.abs().max())
        return is_everywhere and torch.allclose(received, expected, rtol=0.0, atol=tolerance)


def _positions(input_ids: Tensor) -> Tensor:
    return torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)


def _logit_scaling(config: PreTrainedConfig) -> tuple[float, float | None]:
    """Factor and soft cap that architectures put behind their output layer (Granite, Cohere; Gemma 2 and later)."""
    text = config.get_text_config()
    factor = getattr(text, "logit_scale", None) or 1.0 / (getattr(text, "logits_scaling", None) or 1.0)
    return float(factor), getattr(text, "final_logit_softcapping", None)


def _require_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    rows = cast(Tensor, model.get_input_embeddings().weight).shape[0]
    if len(tokenizer) > rows:
        raise ValueError(
            f"model.path={model.name_or_path!r}: the tokenizer has {len(tokenizer)} tokens but the model only {rows}; "
            "use the tokenizer that belongs to the model"
        )
