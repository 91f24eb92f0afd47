"""Rollout parts with a script: prompts, a generator that answers by rule, and handles of workers in this process."""

import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from rollout.calls import PendingCall, WorkerLostError
from rollout.types import Completion, PerToken, Prompt, TokenIds
from rollout.weight_feed import Bucket
from rollout.weight_sync import WeightUpdate


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
    """The answer of a call that has run already."""

    def __init__(self, value: Any = None, error: Exception | None = None) -> None:
        self.value, self.error = value, error

    def result(self, timeout_seconds: float) -> Any:
        del timeout_seconds
        if self.error is not None:
            raise self.error
        return self.value

    def when_done(self, notify: Callable[[], None]) -> None:
        notify()


class Never:
    """The answer of a call that hangs."""

    def result(self, timeout_seconds: float) -> Any:
        raise TimeoutError(f"nothing after {timeout_seconds} s")

    def when_done(self, notify: Callable[[], None]) -> None:
        pass


class InProcessHandle:
    """Calls a worker in this process; without `make` it cannot be replaced.

    Attributes:
        calls: Every call so far, as (method, arguments).
        worker: Who answers.
    """

    def __init__(self, name: str, worker: Any, make: Callable[[], object] | None = None) -> None:
        self.name, self._make = name, make
        self.worker: Any = worker
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.restarts = 0

    def call(self, method: str, *arguments: Any, **keywords: Any) -> PendingCall:
        self.calls.append((method, arguments))
        resolved = [a.result(0) if hasattr(a, "when_done") else a for a in arguments]
        try:
            return Done(getattr(self.worker, method)(*resolved, **keywords))
        except (ValueError, RuntimeError) as error:  # As from another process, the answer raises.
            return Done(error=error)

    def restart(self) -> PendingCall:
        assert self._make is not None, f"{self.name} is not to be replaced"
        self.worker = self._make()
        self.restarts += 1
        return Done()

    def count(self, method: str) -> int:
        return sum(name == method for name, _ in self.calls)


class MortalHandle(InProcessHandle):
    """A worker that dies or hangs at some of its calls, counted over its lives, and stays so until it is replaced.

    Args:
        name: Its name.
        make: Builds the object of every life.
        dies_at: Indices of the `method` calls at which it dies; those to a worker that is gone do not count.
        hangs_at: Indices of those at which it hangs.
        method: What is counted.
    """

    def __init__(
        self,
        name: str,
        make: Callable[[], object],
        *,
        dies_at: Collection[int] = (),
        hangs_at: Collection[int] = (),
        method: str = "generate",
    ) -> None:
        super().__init__(name, make(), make)
        self._dies_at, self._hangs_at, self._method = dies_at, hangs_at, method
        self._state = "alive"
        self._counted = 0

    def call(self, method: str, *arguments: Any, **keywords: Any) -> PendingCall:
        if method == self._method and self._state == "alive":
            index = self._counted
            self._counted += 1
            self._state = "dead" if index in self._dies_at else "hung" if index in self._hangs_at else "alive"
        if self._state == "alive":
            return super().call(method, *arguments, **keywords)
        self.calls.append((method, arguments))
        return Never() if self._state == "hung" else Done(error=WorkerLostError(f"actor {self.name} died"))

    def restart(self) -> PendingCall:
        self._state = "alive"
        return super().restart()


class WaitingHandle(InProcessHandle):
    """A slow worker: each of its answers is there once another handle has made so many calls."""

    def __init__(self, name: str, worker: object, other: InProcessHandle, *, calls: int) -> None:
        super().__init__(name, worker)
        self._other, self._calls = other, calls

    def call(self, method: str, *arguments: Any, **keywords: Any) -> PendingCall:
        return _Late(super().call(method, *arguments, **keywords), self._other, self._calls)


class _Late:
    def __init__(self, answer: PendingCall, other: InProcessHandle, calls: int) -> None:
        self._answer, self._other, self._calls = answer, other, calls

    def result(self, timeout_seconds: float) -> Any:
        return self._answer.result(timeout_seconds)

    def when_done(self, notify: Callable[[], None]) -> None:
        def look() -> None:
            if len(self._other.calls) >= self._calls:
                notify()
            else:
                threading.Timer(0.001, look).start()

        look()


class AnsweringHandle(InProcessHandle):
    """A worker that answers every call with the same value."""

    def __init__(self, name: str, value: Any) -> None:
        super().__init__(name, None)
        self._value = value

    def call(self, method: str, *arguments: Any, **keywords: Any) -> PendingCall:
        del keywords
        self.calls.append((method, arguments))
        return Done(self._value)


class Weights:
    """A weight source with a script: buckets that were packed before."""

    def __init__(self, *updates: WeightUpdate) -> None:
        self.version = updates[0].version
        self.made = [Bucket(update.header, Done(update)) for update in updates]
        self.asked = 0

    def buckets(self) -> Iterator[Bucket]:
        self.asked += 1
        return iter(self.made)
