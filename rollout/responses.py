"""Responses while they grow: when each of them ends, which noise its next token gets, and what is handed over at last.

Owns what every engine must do in the same way, whichever library runs the model. It knows tokens, not tensors.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from policies.tokenization import decode
from rollout.config import ResponseLimits
from rollout.noise import uniforms
from rollout.stopping import resolve_stop_ids
from rollout.types import Completion, FinishReason, Prompt


class NonFiniteLogitsError(RuntimeError):
    """The policy gives no distribution any more: its logits hold NaN or infinity."""


@dataclass(frozen=True, slots=True)
class StopStrings:
    """Ends a response as soon as its text holds one of some strings.

    Attributes:
        strings: What ends it.
        tokenizer: Turns tokens into text, special tokens left out.
    """

    strings: tuple[str, ...]
    tokenizer: PreTrainedTokenizerBase

    def end(self, token_ids: Sequence[int]) -> bool:
        """True if one of the strings stands in the text that the last tokens spell.

        A token spells a byte at least, so a string that the newest token completes began at most as many tokens ago as
        it has bytes; one token more keeps a blank that decoders strip from the start of a text.
        """
        longest = max(len(string.encode()) for string in self.strings)
        text = decode(token_ids[-longest - 1 :], self.tokenizer)
        return any(string in text for string in self.strings)


@dataclass(frozen=True, slots=True)
class ResponseRules:
    """When one response ends.

    Attributes:
        min_tokens: Nothing but the token budget ends it before it has so many; stop tokens are not sampled before.
        max_tokens: The token budget.
        stop_ids: Token ids that end it.
        stop_strings: Texts that end it; None where there are none.
    """

    min_tokens: int
    max_tokens: int
    stop_ids: tuple[int, ...]
    stop_strings: StopStrings | None = None

    def finish_reason(self, token_ids: Sequence[int]) -> FinishReason | None:
        """Why the response ends with the last of `token_ids`; None if it goes on."""
        if token_ids[-1] in self.stop_ids:
            return "stop"
        if self.stop_strings is not None and len(token_ids) >= self.min_tokens and self.stop_strings.end(token_ids):
            return "stop"
        return "length" if len(token_ids) >= self.max_tokens else None


@dataclass(slots=True, eq=False)
class OpenResponse:
    """One response that an engine is to sample, and what it has of it.

    Attributes:
        prompt: What it answers.
        response_index: Its index among the responses to the prompt.
        rules: When it ends.
        noise: (max_tokens,) float64 uniforms, one for each token.
        token_ids: What was sampled so far.
        logprobs: Their behavior log-probabilities, nats.
        finish_reason: Why it ended; None while it grows.
    """

    prompt: Prompt
    response_index: int
    rules: ResponseRules
    noise: NDArray[np.float64]
    token_ids: list[int] = field(default_factory=list[int])
    logprobs: list[float] = field(default_factory=list[float])
    finish_reason: FinishReason | None = None

    @property
    def position(self) -> int:
        """Position of the newest token, the prompt's first one having 0."""
        return len(self.prompt.token_ids) + len(self.token_ids) - 1

    @property
    def next_uniform(self) -> float:
        """The number that draws the next token; 0 once the response has ended."""
        return 0.0 if self.finish_reason else float(self.noise[len(self.token_ids)])

    @property
    def excluded_ids(self) -> tuple[int, ...]:
        """Tokens that must not be next."""
        return self.rules.stop_ids if len(self.token_ids) < self.rules.min_tokens else ()

    def add(self, token_id: int, logprob: float) -> None:
        """Appends a token, and closes the response if it was the last one."""
        self.token_ids.append(token_id)
        self.logprobs.append(logprob)
        self.finish_reason = self.rules.finish_reason(self.token_ids)

    def completion(self, version: int) -> Completion:
        """The finished response.

        Raises:
            NonFiniteLogitsError: if the policy's logits were not finite.
        """
        assert self.finish_reason is not None, f"the response to prompt {self.prompt.id!r} has not ended"
        logprobs = np.array(self.logprobs, dtype=np.float32)
        if not np.isfinite(logprobs).all():
            raise NonFiniteLogitsError(
                f"prompt {self.prompt.id!r}: the policy's logits are not finite at version {version}; its weights "
                "hold NaN or infinity: go back to an earlier checkpoint and lower the learning rate"
            )
        return Completion(
            prompt_id=self.prompt.id,
            response_index=self.response_index,
            token_ids=np.array(self.token_ids, dtype=np.int32),
            logprobs=logprobs,
            finish_reason=self.finish_reason,
            policy_version=version,
        )


class TokenSpace(Protocol):
    """What of a model decides where responses may end; a `policies.backbone.Backbone` has it."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Its tokenizer."""
        ...

    @property
    def vocabulary_size(self) -> int:
        """V, number of logits."""
        ...

    @property
    def context_tokens(self) -> int:
        """Longest sequence, prompt and response."""
        ...

    @property
    def most_virtual_tokens(self) -> int:
        """Virtual tokens that have been taken off the context."""
        ...


class ResponseFactory:
    """Opens responses to prompts.

    Args:
        limits: Where they end if a prompt has no limits of its own.
        model: Whose tokens and context are meant.

    Raises:
        ValueError: if a stop token is no token of the model.
    """

    def __init__(self, limits: ResponseLimits, model: TokenSpace) -> None:
        self._tokenizer, self._vocabulary_size = model.tokenizer, model.vocabulary_size
        self._context_tokens, self._virtual_tokens = model.context_tokens, model.most_virtual_tokens
        self._default = self._rules(limits)

    def open(
        self, prompts: Sequence[Prompt], response_indices: Sequence[int], *, seed: int, step: int
    ) -> list[OpenResponse]:
        """One empty response for each pair of prompt and response index.

        Raises:
            ValueError: if a prompt and its longest response don't fit into the model's context together, or a prompt's
                own limits are impossible.
        """
        return [self._open(prompt, index, seed, step) for prompt, index in zip(prompts, response_indices, strict=True)]

    def _open(self, prompt: Prompt, index: int, seed: int, step: int) -> OpenResponse:
        rules = self._default if prompt.limits is None else self._rules(prompt.limits)
        self._require_fit(prompt, rules)
        return OpenResponse(prompt, index, rules, uniforms(seed, step, prompt.id, index, rules.max_tokens))

    def _rules(self, limits: ResponseLimits) -> ResponseRules:
        return ResponseRules(
            min_tokens=limits.min_response_tokens,
            max_tokens=limits.max_response_tokens,
            stop_ids=resolve_stop_ids(limits, self._tokenizer, self._vocabulary_size),
            stop_strings=StopStrings(limits.stop_strings, self._tokenizer) if limits.stop_strings else None,
        )

    def _require_fit(self, prompt: Prompt, rules: ResponseRules) -> None:
        if len(prompt.token_ids) + rules.max_tokens > self._context_tokens:
            left = f", of which its {self._virtual_tokens} virtual tokens are taken off" if self._virtual_tokens else ""
            raise ValueError(
                f"prompt {prompt.id!r} has {len(prompt.token_ids)} tokens; with max_response_tokens={rules.max_tokens} "
                f"it exceeds the model's context of {self._context_tokens} tokens{left}: lower max_prompt_tokens or "
                "max_response_tokens"
            )
