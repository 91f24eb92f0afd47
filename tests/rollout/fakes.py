"""Rollout parts with a script: prompts, a generator that answers by rule, and handles of workers in this process."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from rollout.types import Completion, PerToken, Prompt, TokenIds


def prompt_of(prompt_id: str, token_ids: Sequence[int] = (5, 6)) -> Prompt:
    return Prompt(id=prompt_id, text=f"text of {prompt_id}", token_ids=np.array(token_ids, dtype=np.int32))


class ScriptedGenerator:
    """Answers with the job itself: token ids [response index, step]; remembers the sizes of its calls."""

    def __init__(self, *, version: int = 0, bias: float = 0.0) -> None:
        self.version = version
        self.bias = bias
        self.loaded: dict[str, Tensor] = {}
        self.call_sizes: list[int] = []

    def generate(
        self, prompts: Sequence[Prompt], response_indices: Sequence[int], *, seed: int, step: int
    ) -> list[Completion]:
        self.call_sizes.append(len(prompts))
        return [
            Completion(
                prompt_id=prompt.id,
                response_index=index,
                token_ids=np.array([index, step], dtype=np.int32),
                logprobs=np.array([-1.0, -float(seed)], dtype=np.float32),
                finish_reason="stop",
                policy_version=self.version,
            )
            for prompt, index in zip(prompts, response_indices, strict=True)
        ]

    def load_weights(self, tensors: Mapping[str, Tensor], *, version: int) -> None:
        self.loaded = dict(tensors)
        self.version = version

    def adopt_version(self, version: int) -> None:
        self.version = version

    def logprobs(self, prompts: Sequence[TokenIds], responses: Sequence[TokenIds]) -> list[PerToken]:
        del prompts
        return [np.full(len(response), self.bias, dtype=np.float32) for response in responses]


class Done:
    """The answer of a call that has run already; remembers how long the caller would have waited."""

    def __init__(self, value: Any) -> None:
        self.value = value
        self.granted_seconds: list[float] = []

    def result(self, timeout_seconds: float) -> Any:
        self.granted_seconds.append(timeout_seconds)
        return self.value


class InProcessHandle:
    """Calls a worker in this process."""

    def __init__(self, name: str, worker: object) -> None:
        self.name = name
        self.worker = worker
        self.calls: list[Done] = []

    def call(self, method: str, *arguments: Any, **keywords: Any) -> Done:
        self.calls.append(Done(getattr(self.worker, method)(*arguments, **keywords)))
        return self.calls[-1]


class HangingHandle:
    """A worker that never answers."""

    def __init__(self, name: str) -> None:
        self.name = name

    def call(self, method: str, *arguments: Any, **keywords: Any) -> "HangingHandle":
        del method, arguments, keywords
        return self

    def result(self, timeout_seconds: float) -> Any:
        raise TimeoutError(f"nothing after {timeout_seconds} s")


class AnsweringHandle:
    """A worker that answers every call with the same value."""

    def __init__(self, name: str, value: Any) -> None:
        self.name = name
        self.value = value

    def call(self, method: str, *arguments: Any, **keywords: Any) -> Done:
        del method, arguments, keywords
        return Done(self.value)
