"""Which responses of a rollout still wait for a worker, which are there, and which cannot be had.

Owns the cut into chunks, the order in which they go out, and what follows from a failure: done again, cut smaller, or
dropped and reported. It calls nobody; `rollout.pool` does.
"""

import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from rollout.types import Completion, Prompt, PromptFailure, RolloutBatch

logger = logging.getLogger(__name__)

_LOSSES_BEFORE_SUSPICION = 2
"""Workers that a chunk may cost before its prompts go alone: a first loss is more likely the machine's fault."""
_LOSSES_BEFORE_DROP = 3
"""Workers that a prompt may cost, those included that it shared with others."""
_PROMPTS_BEFORE_GIVING_UP = 2
"""Failed prompts, without any success, after which the fault is not in the prompts."""


class NoCompletionsError(RuntimeError):
    """Nothing can be generated, whatever the prompt."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Jobs `start` to `stop` of a rollout, which one call generates.

    Attributes:
        start: First job.
        stop: Behind the last job.
        losses: Workers that were lost over these jobs.
    """

    start: int
    stop: int
    losses: int = 0

    @property
    def jobs(self) -> slice:
        """The chunk's part of any list with one entry a job."""
        return slice(self.start, self.stop)


class JobQueue:
    """The jobs of one rollout, each a prompt and the index of one response to it.

    Args:
        prompts: (B,) prompts, repeated for each response.
        calls: Chunks that the jobs are cut into, as far as there are jobs; equal up to one job.
    """

    def __init__(self, prompts: Sequence[Prompt], *, calls: int) -> None:
        self._prompts = prompts
        self._completions: list[Completion | None] = [None] * len(prompts)
        self._waiting = deque(Chunk(part.start, part.stop) for part in shares(len(prompts), calls))
        self._open = len(prompts)
        self._failures: list[PromptFailure] = []
        self._retries = 0

    @property
    def is_done(self) -> bool:
        """True when every job has its completion or its failure."""
        return not self._open

    @property
    def retries(self) -> int:
        """Chunks that went out again, whole or in parts."""
        return self._retries

    def take(self) -> Chunk | None:
        """The next chunk that nobody works on; None where there is none now."""
        return self._waiting.popleft() if self._waiting else None

    def finish(self, chunk: Chunk, completions: Sequence[Completion]) -> None:
        """Keeps what came of a chunk."""
        for index, completion in zip(range(chunk.start, chunk.stop), completions, strict=True):
            self._completions[index] = completion
        self._open -= len(completions)

    def give_back(self, chunk: Chunk) -> None:
        """The chunk's call was lost with its worker before it ran: it waits again, in front of the others."""
        self._again([chunk])

    def lose(self, chunk: Chunk, cause: Exception) -> None:
        """The worker was lost while it worked on the chunk, which waits again.

        After the second time each of its prompts goes alone, to find the one that ends workers; after the third it is
        dropped.

        Raises:
            NoCompletionsError: as `fail`.
        """
        suspect = replace(chunk, losses=chunk.losses + 1)
        if suspect.losses < _LOSSES_BEFORE_SUSPICION:
            self._again([suspect])
        elif suspect.losses < _LOSSES_BEFORE_DROP:
            self._again(self._prompt_by_prompt(suspect))
        else:
            self._drop(suspect, cause)

    def fail(self, chunk: Chunk, cause: Exception) -> None:
        """The call raised `cause`: the chunk waits again in two halves; the jobs of a single prompt are dropped.

        Raises:
            NoCompletionsError: when two prompts or all of them have failed, and none has worked.
        """
        alone = self._prompt_by_prompt(chunk)
        if len(alone) == 1:
            self._drop(chunk, cause)
        else:
            middle = alone[len(alone) // 2].start
            self._again([replace(chunk, stop=middle), replace(chunk, start=middle)])

    def batch(self) -> RolloutBatch:
        """What came of all jobs, in their order."""
        there = [(p, c) for p, c in zip(self._prompts, self._completions, strict=True) if c is not None]
        return RolloutBatch([prompt for prompt, _ in there], [c for _, c in there], self._failures)

    def _again(self, chunks: Sequence[Chunk]) -> None:
        self._waiting.extendleft(reversed(chunks))
        self._retries += len(chunks)

    def _drop(self, chunk: Chunk, cause: Exception) -> None:
        failure = PromptFailure(
            prompt_id=self._prompts[chunk.start].id,
            responses=chunk.stop - chunk.start,
            reason=f"{type(cause).__name__}: {cause}",
        )
        self._failures.append(failure)
        self._open -= failure.responses
        failed = {failure.prompt_id for failure in self._failures}
        if not any(self._completions) and (self.is_done or len(failed) >= _PROMPTS_BEFORE_GIVING_UP):
            raise NoCompletionsError(
                f"nothing could be generated, for whatever prompt; the last tried was {failure.prompt_id!r}: "
                f"{failure.reason}"
            ) from cause
        logger.warning("prompt %r: %d responses dropped: %s", failure.prompt_id, failure.responses, failure.reason)

    def _prompt_by_prompt(self, chunk: Chunk) -> list[Chunk]:
        ids = [prompt.id for prompt in self._prompts]
        changes = [i for i in range(chunk.start + 1, chunk.stop) if ids[i] != ids[i - 1]]
        return [replace(chunk, start=a, stop=b) for a, b in pairwise([chunk.start, *changes, chunk.stop])]


def shares(count: int, workers: int) -> list[slice]:
    """Contiguous shares of `count` jobs that differ by at most one job, larger ones first; empty ones are left out.

    Example: 5 jobs for 3 workers give [0:2], [2:4], [4:5].
    """
    size, extra = divmod(count, workers)
    bounds = [index * size + min(index, extra) for index in range(workers + 1)]
    return [slice(start, stop) for start, stop in pairwise(bounds) if stop > start]
