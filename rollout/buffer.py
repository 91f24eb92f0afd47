"""Rollouts on their way to the learner: made one after the other, ahead of it by a bounded number of updates.

Owns the order, the thread that generates while the learner is busy, the age bound, and the state by which an
interrupted run goes on with the same samples. How a rollout is made is the caller's business.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from rollout.types import Completion, Prompt, PromptFailure, RolloutBatch

T = TypeVar("T")


class StaleRolloutError(RuntimeError):
    """Every sample of a rollout is older than the bound."""


@dataclass(frozen=True, slots=True)
class Rollout:
    """One step's samples, and what is to be said about their making.

    Attributes:
        batch: The samples.
        metrics: Numbers for the step that learns from them.
    """

    batch: RolloutBatch
    metrics: Mapping[str, float] = field(default_factory=dict[str, float])


class RolloutBuffer:
    """First in, first out.

    Jobs run in the order they were given. With `max_policy_age` 0 they run at once, in the caller's thread; above, in
    one thread beside it.

    Args:
        max_policy_age: Updates by which a sample may be behind the policy that learns from it.
        cancel: Makes the running job end early; called when the buffer is closed, from the closing thread.
    """

    def __init__(self, *, max_policy_age: int, cancel: Callable[[], None] = lambda: None) -> None:
        self._max_policy_age, self._cancel = max_policy_age, cancel
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="rollout") if max_policy_age else None
        self._ahead: deque[Future[Rollout]] = deque()

    def __len__(self) -> int:
        """Rollouts that were started and not taken."""
        return len(self._ahead)

    def start(self, job: Callable[[], Rollout]) -> None:
        """Makes a rollout behind those that were started before."""
        self._ahead.append(self._submit(job))

    def run(self, job: Callable[[], T]) -> T:
        """The result of something else that needs the workers, behind the rollouts that were started before."""
        return self._submit(job).result()

    def take(self, policy_version: int) -> Rollout:
        """Waits for the oldest rollout, without the samples that are too old for an update of `policy_version`.

        Their number stands in its metrics as `rollout/stale`.

        Raises:
            StaleRolloutError: if no sample is left.
            Exception: what the job raised.
        """
        rollout = self._ahead.popleft().result()
        batch = rollout.batch
        oldest = policy_version - self._max_policy_age
        fresh = [i for i, completion in enumerate(batch.completions) if completion.policy_version >= oldest]
        stale = len(batch) - len(fresh)
        if stale == len(batch):
            raise StaleRolloutError(
                f"all {stale} samples of a rollout are older than policy version {oldest}, the oldest that version "
                f"{policy_version} may learn from with rollout.max_policy_age={self._max_policy_age}"
            )
        kept = RolloutBatch([batch.prompts[i] for i in fresh], [batch.completions[i] for i in fresh], batch.failures)
        return Rollout(kept if stale else batch, {**rollout.metrics, "rollout/stale": float(stale)})

    def state(self) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
        """What was started and not taken, as tensors and plain values; waits until it is there.

        The samples themselves, because the weights that drew them are gone: to draw them again, every checkpoint would
        have to hold the weights of `max_policy_age` versions.
        """
        tensors: dict[str, Tensor] = {}
        values: list[dict[str, Any]] = []
        for index, future in enumerate(self._ahead):
            rollout = future.result()
            completions = rollout.batch.completions
            tensors[f"{index}.token_ids"] = torch.from_numpy(np.concatenate([c.token_ids for c in completions]))
            tensors[f"{index}.logprobs"] = torch.from_numpy(np.concatenate([c.logprobs for c in completions]))
            values.append(
                {
                    "completions": [
                        [c.prompt_id, c.response_index, len(c.token_ids), c.finish_reason, c.policy_version]
                        for c in completions
                    ],
                    "failures": [[f.prompt_id, f.responses, f.reason] for f in rollout.batch.failures],
                    "metrics": dict(rollout.metrics),
                }
            )
        return tensors, values

    def load_state(
        self, tensors: Mapping[str, Tensor], values: Sequence[Mapping[str, Any]], prompts: Mapping[str, Prompt]
    ) -> None:
        """Continues from `state`.

        Args:
            tensors: As `state` gave them.
            values: As `state` gave them.
            prompts: The run's prompts by id.
        """
        for index, saved in enumerate(values):
            done: Future[Rollout] = Future()
            done.set_result(_restored(saved, prompts, tensors[f"{index}.token_ids"], tensors[f"{index}.logprobs"]))
            self._ahead.append(done)

    def close(self) -> None:
        """Cancels, drops what was not taken, and waits for the end of the job that runs now."""
        if self._thread is not None:
            self._cancel()
            self._thread.shutdown(wait=True, cancel_futures=True)

    def _submit(self, job: Callable[[], T]) -> "Future[T]":
        if self._thread is not None:
            return self._thread.submit(job)
        done: Future[T] = Future()
        done.set_result(job())
        return done


def _restored(saved: Mapping[str, Any], prompts: Mapping[str, Prompt], token_ids: Tensor, logprobs: Tensor) -> Rollout:
    ends = np.cumsum([length for _, _, length, _, _ in saved["completions"]])[:-1]
    responses, behavior = np.split(token_ids.numpy(), ends), np.split(logprobs.numpy(), ends)
    completions = [
        Completion(prompt_id, index, response, logprob, reason, version)
        for (prompt_id, index, _, reason, version), response, logprob in zip(
            saved["completions"], responses, behavior, strict=True
        )
    ]
    failures = [PromptFailure(*failure) for failure in saved["failures"]]
    return Rollout(RolloutBatch([prompts[c.prompt_id] for c in completions], completions, failures), saved["metrics"])
