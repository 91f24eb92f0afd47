"""A loaded model and what an evaluation asks of it: answers, log-probs of given answers, perplexity.

Owns the one load of each model. What the answers are worth is the judges' business.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Self

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from policies.backbone import Backbone
from policies.causal import CausalPolicy
from policies.config import ModelConfig
from policies.loading import load_backbone, policy_adapter
from policies.sequences import TokenIds
from rlhf.text_stream import perplexity
from rollout.config import SamplingConfig
from rollout.engines import build_generator
from rollout.generation import Generator, repeat_prompts
from rollout.types import PerToken, Prompt, RolloutBatch

_MICRO_BATCH_TOKENS = 8192


class LoadedModel:
    """One model in memory.

    Args:
        config: Which one.

    Raises:
        ValueError: it cannot be loaded.
    """

    def __init__(self, config: ModelConfig) -> None:
        backbone = load_backbone(config)
        self._take(backbone, policy_adapter(backbone))

    @classmethod
    def of(cls, backbone: Backbone, adapter: str | None) -> Self:
        """The model that somebody else holds, as it is now; not to be asked after its weights have changed."""
        model = cls.__new__(cls)
        model._take(backbone, adapter)
        return model

    def _take(self, backbone: Backbone, adapter: str | None) -> None:
        self._backbone, self._adapter = backbone, adapter
        self._policy = CausalPolicy(backbone, adapter=adapter, temperature=1.0)
        self._generators: dict[SamplingConfig, Generator] = {}

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Its tokenizer."""
        return self._backbone.tokenizer

    @property
    def context_tokens(self) -> int:
        """Longest sequence that it reads."""
        return self._backbone.context_tokens

    @property
    def virtual_tokens(self) -> int:
        """Virtual tokens that the adapter puts before every row."""
        return self._backbone.adapters.virtual_tokens(self._adapter)

    def sample(
        self,
        prompts: Sequence[Prompt],
        sampling: SamplingConfig,
        *,
        seed: int,
        responses_per_prompt: int = 1,
        first_index: int = 0,
    ) -> RolloutBatch:
        """Answers to every prompt, those to one prompt in a row.

        Args:
            prompts: N prompts.
            sampling: How tokens are drawn.
            seed: Seed of the noise, which is a function of it, the prompt's id and the answer's index.
            responses_per_prompt: G.
            first_index: Index of the first answer to each prompt; another one gives other noise.
        """
        repeated, indices = repeat_prompts(prompts, responses_per_prompt)
        shifted = [first_index + index for index in indices]
        return RolloutBatch(repeated, self._generator(sampling).generate(repeated, shifted, seed=seed, step=0))

    def kl_of(self, batch: RolloutBatch, sampling: SamplingConfig) -> NDArray[np.float64]:
        """(B,) log-prob of each answer under the model that gave it, minus that under this one, nats (k1).

        Its mean estimates the KL from that model to this one, nats per sequence.
        """
        mine = self._generator(sampling).logprobs(
            [prompt.token_ids for prompt in batch.prompts], [completion.token_ids for completion in batch.completions]
        )
        return np.array([float((c.logprobs - r).sum()) for c, r in zip(batch.completions, mine, strict=True)])

    def logprobs(self, prompts: Sequence[TokenIds], responses: Sequence[TokenIds]) -> list[PerToken]:
        """(R,) log-probs of given continuations at temperature 1, nats."""
        return self._policy.response_logprobs(prompts, responses, token_budget=_MICRO_BATCH_TOKENS)

    def perplexity(self, texts: Sequence[str]) -> float | None:
        """Perplexity of held-out texts; None without any."""
        return perplexity(self._policy, texts) if texts else None

    @contextmanager
    def transformers_model(self) -> Iterator[PreTrainedModel]:
        """The model as transformers has it, with the policy's adapter on; for libraries that ask it themselves."""
        with self._backbone.adapters.use(self._adapter):
            yield self._backbone.model

    def _generator(self, sampling: SamplingConfig) -> Generator:
        if sampling not in self._generators:
            self._generators[sampling] = build_generator(self._backbone, self._adapter, sampling)
        return self._generators[sampling]
