"""An encoder-decoder model (T5-like) with its tokenizer: loading, log-probs of targets, generation.

The counterpart of `loading` and `causal` for models that read an input and write a target. It stays apart from
`Backbone`: adapters, packing and rollout engines are for decoders, and PPO takes decoders only. An input is
`prompt <eos>`, a target `completion <eos>`; the decoder starts from the model's start token.
"""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import Parameter
from transformers import AutoConfig, AutoModelForSeq2SeqLM, PreTrainedModel, PreTrainedTokenizerBase, T5Config

from policies.config import EncoderDecoderArchitecture, ModelConfig
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
        device: Where it lives.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.device = model.device

    @property
    def context_tokens(self) -> int:
        """Longest input or target, by the tokenizer: relative positions have no end of their own."""
        return int(min(self.tokenizer.model_max_length, 2**31 - 1))

    @property
    def sentinel_ids(self) -> list[int]:
        """Ids of the sentinel tokens, the first one first; empty where the tokenizer has none."""
        vocabulary = self.tokenizer.get_vocab()
        ids: list[int] = []
        while (name := SENTINEL.format(len(ids))) in vocabulary:
            ids.append(vocabulary[name])
        return ids

    def trainable(self) -> list[tuple[str, Parameter]]:
        """Every weight, by name."""
        return list(self.model.named_parameters())

    def weights(self) -> dict[str, Tensor]:
        """Every weight, by name; shares memory with the model."""
        return {name: parameter.detach() for name, parameter in self.model.named_parameters()}

    @torch.no_grad()
    def load_weights(self, tensors: Mapping[str, Tensor]) -> None:
        """Overwrites what `weights` returned."""
        for name, parameter in self.model.named_parameters():
            parameter.copy_(tensors[name])

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
        with torch.random.fork_rng(devices=[]):
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
    """The model of a folder.

    Raises:
        ValueError: it cannot be loaded, or is none.
    """
    if not is_encoder_decoder(path):
        raise ValueError(f"model.path={path!r}: not an encoder-decoder; `rlhf pretrain` and `rlhf sft` train decoders")
    try:
        model = cast(PreTrainedModel, AutoModelForSeq2SeqLM.from_pretrained(path, dtype=torch.float32))
    except (OSError, ValueError, ImportError) as error:
        raise unreachable(path, error) from error
    return EncoderDecoder(cast(Any, model).to(device), load_tokenizer(ModelConfig(path=path)))


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
