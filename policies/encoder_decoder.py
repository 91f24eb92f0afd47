"""An encoder-decoder model (T5-like) with its tokenizer: loading, log-probs of targets, generation.

The counterpart of `loading` and `causal` for models that read an input and write a target. It stays apart from
`Backbone`: packing and rollout engines are for decoders, and PPO takes decoders only. What trains is the model itself,
or a LoRA adapter on it. An input is `prompt <eos>`, a target `completion <eos>`; the decoder starts from the model's
start token.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from peft import TaskType
from torch import Tensor, nn
from torch.nn import Parameter
from transformers import AutoConfig, AutoModelForSeq2SeqLM, PreTrainedModel, PreTrainedTokenizerBase, T5Config

from policies.adapters import AdapterSet
from policies.base_identity import base_parameters
from policies.checkpoint import save_model
from policies.config import EncoderDecoderArchitecture, FullTuning, LoraTuning, ModelConfig
from policies.loading import POLICY_ADAPTER, prepare_adapter
from policies.logprobs import response_states, token_logprobs
from policies.sequences import SequenceBatch, TokenIds, pad_sequences
from policies.sources import resolve_source, unreachable
from policies.tokenization import load_tokenizer

SENTINEL = "<extra_id_{}>"
"""Name of the sentinel tokens, as T5 calls them."""


class EncoderDecoder:
    """One encoder-decoder in memory; dropout is off for good.

    Attributes:
        model: The transformers model.
        tokenizer: Its tokenizer.
        adapters: Adapters on the model.
        adapter: The one that it answers with, and that trains; None is the model itself.
        device: Where it lives.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self.model = model.eval().requires_grad_(requires_grad=False)
        self.tokenizer = tokenizer
        self.adapters = AdapterSet(model, tokenizer, task=TaskType.SEQ_2_SEQ_LM)
        self.adapter: str | None = None
        self.device = model.device

    @property
    def context_tokens(self) -> int:
        """Longest input or target, by the tokenizer: relative positions have no end of their own."""
        return int(min(self.tokenizer.model_max_length, 2**31 - 1))

    @property
    def parameters(self) -> int:
        """Number of weights, those of adapters left out."""
        return sum(parameter.numel() for _, parameter in base_parameters(self.model))

    @property
    def sentinel_ids(self) -> list[int]:
        """Ids of the sentinel tokens, the first one first; empty where the tokenizer has none."""
        vocabulary = self.tokenizer.get_vocab()
        ids: list[int] = []
        while (name := SENTINEL.format(len(ids))) in vocabulary:
            ids.append(vocabulary[name])
        return ids

    def tune(self, tuning: FullTuning | LoraTuning, *, seed: int) -> None:
        """Decides what trains: all weights, or an adapter, which is added if the model came without.

        Raises:
            ValueError: it came with one, and the model itself is to train.
        """
        self.adapter = prepare_adapter(self.adapters, tuning, seed=seed)

    def trainable(self) -> list[tuple[str, Parameter]]:
        """What trains, by name, with gradients let in: the adapter's weights, or all of the model's."""
        if self.adapter is not None:
            return self.adapters.trainable(self.adapter)
        parameters = list(self.model.named_parameters())
        for _, parameter in parameters:
            parameter.requires_grad = True
        return parameters

    def weights(self) -> dict[str, Tensor]:
        """What training changes, by name; shares memory with the model."""
        if self.adapter is not None:
            return self.adapters.state(self.adapter)
        return {name: parameter.detach() for name, parameter in self.model.named_parameters()}

    @torch.no_grad()
    def load_weights(self, tensors: Mapping[str, Tensor]) -> None:
        """Overwrites what `weights` returned."""
        if self.adapter is not None:
            self.adapters.load_state(self.adapter, tensors)
            return
        for name, parameter in self.model.named_parameters():
            parameter.copy_(tensors[name])

    def save(self, folder: str | Path, metadata: Mapping[str, Any]) -> None:
        """Writes an ordinary Hugging Face folder, or an adapter as PEFT does."""
        if self.adapter is None:
            save_model(folder, self.model, self.tokenizer, metadata)
        else:
            self.adapters.save(self.adapter, folder, tokenizer=self.tokenizer, metadata=metadata)

    def target_logprobs(self, inputs: Sequence[TokenIds], targets: Sequence[TokenIds]) -> tuple[Tensor, Tensor]:
        """Log-probability of every target token given the input and the target before it.

        The (M, R, V) logits are held whole, which small models of small vocabularies bear.

        Args:
            inputs: M arrays of ids, end-of-sequence included.
            targets: M arrays of ids.

        Returns:
            (M, R) log-probs, nats, 0 at padding; and the mask that is True at real tokens.
        """
        source, mask = self._padded(inputs)
        start = np.array([self._start_id], dtype=np.int32)
        # To the decoder, the start token is a prompt of one token and the target the response to it.
        batch = pad_sequences([start] * len(targets), list(targets), pad_id=self._pad_id, device=self.device)
        with self.adapters.use(self.adapter):
            logits = self._decoder_logits(source, mask, batch)
        found = token_logprobs(response_states(logits, batch), batch, lambda rows: rows, temperature=1.0)
        return found.logprobs, batch.response_mask

    @torch.no_grad()
    def generate(
        self, inputs: Sequence[TokenIds], *, max_tokens: int, temperature: float, seed: int
    ) -> list[tuple[NDArray[np.int32], NDArray[np.float32]]]:
        """A sampled target for each input: ids up to its end-of-sequence token, and their log-probs at `temperature`.

        The numbers drawn depend on which inputs are sampled together; at a temperature near 0 that changes nothing.
        """
        source, mask = self._padded(inputs)
        with torch.random.fork_rng(devices=[]), self.adapters.use(self.adapter):
            torch.manual_seed(seed)
            found: Any = cast(Any, self.model).generate(
                input_ids=source,
                attention_mask=mask,
                do_sample=True,
                temperature=temperature,
                top_k=0,
                top_p=1.0,
                max_new_tokens=max_tokens,
                pad_token_id=self._pad_id,
                eos_token_id=self.tokenizer.eos_token_id,
                decoder_start_token_id=self._start_id,
                return_dict_in_generate=True,
                output_scores=True,
            )
        ids = found.sequences[:, 1:]
        scores = torch.stack([torch.log_softmax(step.float(), dim=-1) for step in found.scores], dim=1)
        logprobs = scores.gather(2, ids.unsqueeze(2)).squeeze(2)
        return [self._until_end(row, values) for row, values in zip(ids.cpu(), logprobs.cpu(), strict=True)]

    def _until_end(self, ids: Tensor, logprobs: Tensor) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        ends = ids.eq(cast(int, self.tokenizer.eos_token_id)).nonzero()
        stop = int(ends[0]) + 1 if len(ends) else len(ids)
        return ids[:stop].numpy().astype(np.int32), logprobs[:stop].numpy()

    def _decoder_logits(self, source: Tensor, mask: Tensor, batch: SequenceBatch) -> Tensor:
        return self.model(
            input_ids=source,
            attention_mask=mask,
            decoder_input_ids=batch.input_ids,
            decoder_attention_mask=batch.attention_mask,
            use_cache=False,
        ).logits

    def _padded(self, inputs: Sequence[TokenIds]) -> tuple[Tensor, Tensor]:
        rows = [torch.from_numpy(np.asarray(ids, dtype=np.int64)) for ids in inputs]
        source = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=self._pad_id)
        lengths = torch.tensor([len(row) for row in rows])
        mask = torch.arange(source.shape[1]) < lengths[:, None]
        return source.to(self.device), mask.to(self.device)

    @property
    def _pad_id(self) -> int:
        return cast(int, self.tokenizer.pad_token_id)

    @property
    def _start_id(self) -> int:
        return cast(int, self.model.config.decoder_start_token_id)


def is_encoder_decoder(path: str) -> bool:
    """Whether a model folder, or hub name, holds an encoder-decoder.

    Raises:
        ValueError: it holds no model.
    """
    base = resolve_source(path).base
    try:
        return bool(getattr(AutoConfig.from_pretrained(base), "is_encoder_decoder", False))
    except (OSError, ValueError) as error:
        raise unreachable(path, error) from error


def load_encoder_decoder(path: str, device: torch.device) -> EncoderDecoder:
    """The model of a folder; where that holds an adapter, its base with the adapter on.

    Raises:
        ValueError: it cannot be loaded, or is none.
    """
    if not is_encoder_decoder(path):
        raise ValueError(f"model.path={path!r}: not an encoder-decoder; `rlhf pretrain` and `rlhf sft` train decoders")
    source = resolve_source(path)
    try:
        model = cast(PreTrainedModel, AutoModelForSeq2SeqLM.from_pretrained(source.base, dtype=torch.float32))
    except (OSError, ValueError, ImportError) as error:
        raise unreachable(path, error) from error
    loaded = EncoderDecoder(cast(Any, model).to(device), load_tokenizer(ModelConfig(path=path)))
    if source.adapter is not None:
        loaded.adapters.load(POLICY_ADAPTER, source.adapter)
        loaded.adapter = POLICY_ADAPTER
    return loaded


def random_encoder_decoder(
    architecture: EncoderDecoderArchitecture, tokenizer: PreTrainedTokenizerBase, *, seed: int, device: torch.device
) -> EncoderDecoder:
    """A T5 1.1-style model (gated feed-forward, relative positions) with random weights.

    Raises:
        ValueError: the heads do not divide the hidden size.
    """
    if architecture.hidden_size % architecture.heads:
        raise ValueError(f"architecture.heads={architecture.heads} must divide hidden_size={architecture.hidden_size}")
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=architecture.hidden_size,
        d_kv=architecture.hidden_size // architecture.heads,
        d_ff=architecture.intermediate_size or 2 * architecture.hidden_size,
        num_layers=architecture.layers,
        num_decoder_layers=architecture.layers,
        num_heads=architecture.heads,
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
        pad_token_id=cast(int, tokenizer.pad_token_id),
        eos_token_id=cast(int, tokenizer.eos_token_id),
    )
    config.decoder_start_token_id = tokenizer.pad_token_id
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = cast(PreTrainedModel, AutoModelForSeq2SeqLM.from_config(config, dtype=torch.float32))
    return EncoderDecoder(cast(Any, model).to(device), tokenizer)


def add_sentinels(tokenizer: PreTrainedTokenizerBase, count: int) -> None:
    """Adds `count` sentinel tokens behind the vocabulary."""
    tokenizer.add_special_tokens({"additional_special_tokens": [SENTINEL.format(number) for number in range(count)]})
