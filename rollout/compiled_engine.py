"""The engine for the CPU, and for anything with uneven responses: decoding in slots, with the model's own modules.

Owns the assembly: each thread (`lanes`) reads its prompts once and in buckets (`prefill`) and decodes its responses in
slots (`continuous`) over one cache (`slot_cache`), with linear layers and attention in the forms that are fastest for
few tokens a row (`packed_linear`, `decode_attention`) and, after the first rollout, without Python between the
operations of a step (`traced_step`). It holds no weights.

The name is the configuration's. `torch.compile` is not used: on two cores it takes 20 to 60 s, and then fuses
elementwise operations that are a tenth of a step, while the matrix products it would pack are packed here in
milliseconds, and the Python it would leave out is left out by a trace of a second. Prompts keep torch's fused
attention: batched products are a third faster up to 128 tokens, which is 1 % of a rollout, but round their scores to
the model's precision. There is no path of its own for CUDA: there the loop runs with the model's attention and without
graphs.
"""

import inspect
import math
from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import get_layer_types_and_kwargs

from policies.backbone import Backbone
from rollout.config import CompiledEngineConfig, SamplingConfig
from rollout.continuous import ContinuousDecoder
from rollout.decode_attention import decode_attention
from rollout.decode_step import DecodeStep, plain_step
from rollout.lanes import deal, lane_count, run_lanes
from rollout.packed_linear import packed_linears
from rollout.prefill import prefilled
from rollout.responses import OpenResponse, ResponseFactory
from rollout.sampled_policy import SampledPolicy
from rollout.traced_step import TracedStep, traced_step
from rollout.types import Completion, PerToken, Prompt, TokenIds

STEPS_BEFORE_TRACE = 64
"""A trace takes as long as some tens of steps, and saves a fifth of each that follows."""
_LAYER_TYPES = {"full_attention", "sliding_attention"}


class CompiledGenerator:
    """Samples with continuous batching; a `rollout.generation.Generator`.

    Args:
        backbone: Model, tokenizer and adapters.
        adapter: Name of the policy's adapter; None samples from the bare model.
        sampling: Temperature, lengths and stop tokens.
        engine: Slots, prefill and merging.
        version: Number of the policy whose weights the backbone holds.

    Raises:
        ValueError: if a stop token is no token of the model, or the model keeps another state than keys and values.
    """

    def __init__(
        self,
        backbone: Backbone,
        adapter: str | None,
        sampling: SamplingConfig,
        engine: CompiledEngineConfig,
        *,
        version: int = 0,
    ) -> None:
        if not is_supported(backbone.model):
            raise ValueError(
                f"rollout.engine.kind=compiled: {type(backbone.model).__name__} cannot be decoded in slots, only "
                "models with plain key-value caches can; set rollout.engine.kind=hf"
            )
        self._backbone, self._adapter, self._engine = backbone, adapter, engine
        self._temperature = sampling.temperature
        self._responses = ResponseFactory(sampling, backbone)
        self._traced: TracedStep | None = None
        self._steps = 0.0
        self._policy = SampledPolicy(
            backbone,
            adapter,
            temperature=sampling.temperature,
            merge_adapter=engine.merge_adapter,
            version=version,
        )

    @property
    def version(self) -> int:
        """Number of the policy it samples from."""
        return self._policy.version

    def generate(
        self, prompts: Sequence[Prompt], response_indices: Sequence[int], *, seed: int, step: int
    ) -> list[Completion]:
        """One completion for each pair of prompt and response index, in that order.

        Raises:
            ValueError: if a prompt and the longest response don't fit into the model's context together.
            NonFiniteLogitsError: if the policy's logits hold NaN.
        """
        responses = self._responses.open(prompts, response_indices, seed=seed, step=step)
        model = self._backbone.model
        lanes = lane_count(model, min(self._engine.slots, len(responses)))
        # Packed behind `decoding`, because what is packed are to be the merged weights.
        keep_weights = self._adapter is not None and not self._backbone.adapters.is_sum(self._adapter)
        with (
            self._policy.decoding(),
            packed_linears(model, keep_weights=keep_weights) as packed,
            decode_attention(model),
        ):
            decode = partial(self._decode, slots=-(-self._engine.slots // lanes), step=self._step(packed))
            run_lanes(decode, deal(responses, lanes))
        self._steps += max((len(response.token_ids) for response in responses), default=0)
        return [response.completion(self.version) for response in responses]

    @torch.inference_mode()
    def _decode(self, responses: Sequence[OpenResponse], *, slots: int, step: DecodeStep) -> None:
        """Samples the responses of one lane."""
        decoder = ContinuousDecoder(
            self._backbone, temperature=self._temperature, slots=min(slots, len(responses)), step=step
        )
        decoder.run(prefilled(self._backbone, responses, token_budget=self._engine.prefill_tokens))

    @torch.inference_mode()
    def _step(self, packed: list[Tensor]) -> DecodeStep:
        """The decode step with the weights as they are now: traced once it is known to be needed often."""
        if self._traced is None and self._steps >= STEPS_BEFORE_TRACE:
            self._traced = traced_step(self._backbone, packed)
            # A model that has no trace now will have none later.
            self._steps = 0 if self._traced is not None else -math.inf
        if self._traced is not None and not self._traced.still_fits():
            self._traced = None
        return plain_step(self._backbone) if self._traced is None else self._traced.with_weights(packed)

    def load_weights(self, tensors: Mapping[str, Tensor], *, version: int) -> None:
        """Overwrites the policy's weights: the adapter's, or all of the model's where there is no adapter.

        Raises:
            ValueError: if names or shapes are not those of the policy.
        """
        self._policy.load_weights(tensors, version=version)

    def adopt_version(self, version: int) -> None:
        """Takes a new version whose weights the learner has written into this backbone."""
        self._policy.version = version

    def logprobs(self, prompts: Sequence[TokenIds], responses: Sequence[TokenIds]) -> list[PerToken]:
        """Log-probabilities (R,) in nats of given responses at the sampling temperature, by a plain forward pass."""
        return self._policy.logprobs(prompts, responses)


def is_supported(model: PreTrainedModel) -> bool:
    """Whether the model keeps keys and values alone, and may be given more columns of them than it has written.

    The latter is what transformers vouches for with `_can_compile_fullgraph`, which stands for static caches, too
    (GPT-Neo, for one, counts its local attention from the last column).
    """
    layer_types, _ = get_layer_types_and_kwargs(model.config.get_text_config(decoder=True))
    takes_cache = "past_key_values" in inspect.signature(model.base_model.forward).parameters
    return takes_cache and set(layer_types) <= _LAYER_TYPES and bool(model._can_compile_fullgraph)
