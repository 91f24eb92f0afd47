"""What becomes of the jobs of a rollout: cut, given back, cut smaller, dropped with a reason."""

import logging
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from rollout.job_queue import Chunk, JobQueue, NoCompletionsError, shares
from rollout.types import Completion, PromptFailure
from tests.rollout.fakes import prompt_of

DEAD = RuntimeError("actor gone")
BAD = ValueError("does not fit")


def queue_of(letters: str, *, calls: int) -> JobQueue:
    return JobQueue([prompt_of(letter) for letter in letters], calls=calls)


def completions_of(letters: Sequence[str]) -> list[Completion]:
    ids, logprobs = np.array([4], np.int32), np.array([-1.0], np.float32)
    return [Completion(letter, 0, ids, logprobs, "stop", 0) for letter in letters]


def take(queue: JobQueue) -> Chunk:
    chunk = queue.take()
    assert chunk is not None
    return chunk


def work_off(letters: str, queue: JobQueue, spoil: Callable[[JobQueue, Chunk], bool]) -> list[tuple[int, int]]:
    """Takes chunks until all is done; `spoil` says of each whether it went wrong. Returns the chunks in order."""
    taken: list[tuple[int, int]] = []
    while not queue.is_done:
        chunk = take(queue)
        taken.append((chunk.start, chunk.stop))
        if not spoil(queue, chunk):
            queue.finish(chunk, completions_of(letters[chunk.jobs]))
    return taken


def answered(queue: JobQueue) -> str:
    batch = queue.batch()
    assert [prompt.id for prompt in batch.prompts] == [completion.prompt_id for completion in batch.completions]
    return "".join(completion.prompt_id for completion in batch.completions)


@pytest.mark.parametrize(
    ("count", "workers", "expected"),
    [
        (5, 3, [(0, 2), (2, 4), (4, 5)]),
        (6, 3, [(0, 2), (2, 4), (4, 6)]),
        (7, 2, [(0, 4), (4, 7)]),
        (2, 4, [(0, 1), (1, 2)]),
        (0, 2, []),
    ],
)
def test_shares_are_contiguous_and_equal_up_to_one_job(
    count: int, workers: int, expected: list[tuple[int, int]]
) -> None:
    assert [(part.start, part.stop) for part in shares(count, workers)] == expected


def test_chunks_that_finish_in_any_order_make_a_batch_in_the_order_of_the_jobs() -> None:
    queue = queue_of("abcde", calls=2)
    first, second = take(queue), take(queue)
    assert (first, second) == (Chunk(0, 3), Chunk(3, 5))
    assert queue.take() is None
    queue.finish(second, completions_of("de"))
    assert not queue.is_done
    queue.finish(first, completions_of("abc"))
    assert queue.is_done
    assert answered(queue) == "abcde"
    assert queue.batch().failures == []
    assert queue.retries == 0


def test_an_answer_of_another_length_is_no_answer() -> None:
    queue = queue_of("abc", calls=1)
    chunk = take(queue)
    with pytest.raises(ValueError, match="shorter"):
        queue.finish(chunk, completions_of("ab"))


def test_a_lost_chunk_goes_first_and_whole() -> None:
    queue = queue_of("abcdef", calls=3)
    first, second = take(queue), take(queue)
    queue.give_back(second)
    queue.lose(first, DEAD)
    assert [queue.take() for _ in range(3)] == [Chunk(0, 2, losses=1), Chunk(2, 4), Chunk(4, 6)]
    assert queue.retries == 2


def test_a_prompt_that_ends_every_worker_is_found_alone_and_dropped(caplog: pytest.LogCaptureFixture) -> None:
    letters = "aabbccd"
    queue = queue_of(letters, calls=2)

    def ends_worker(queue: JobQueue, chunk: Chunk) -> bool:
        if "b" not in letters[chunk.jobs]:
            return False
        queue.lose(chunk, DEAD)
        return True

    with caplog.at_level(logging.WARNING):
        taken = work_off(letters, queue, ends_worker)
    # Whole, whole again, each prompt alone; the other chunk is not touched.
    assert taken == [(0, 4), (0, 4), (0, 2), (2, 4), (4, 7)]
    assert answered(queue) == "aaccd"
    assert queue.batch().failures == [PromptFailure("b", 2, "RuntimeError: actor gone")]
    assert "prompt 'b': 2 responses dropped: RuntimeError: actor gone" in caplog.text
    assert queue.retries == 3


def test_a_prompt_that_raises_is_found_by_halving_and_dropped_with_all_its_responses() -> None:
    letters = "aabbccdd"
    queue = queue_of(letters, calls=1)

    def raises(queue: JobQueue, chunk: Chunk) -> bool:
        if "c" not in letters[chunk.jobs]:
            return False
        queue.fail(chunk, BAD)
        return True

    assert work_off(letters, queue, raises) == [(0, 8), (0, 4), (4, 8), (4, 6), (6, 8)]
    assert answered(queue) == "aabbdd"
    assert queue.batch().failures == [PromptFailure("c", 2, "ValueError: does not fit")]


def test_a_prompt_whose_responses_lie_in_two_chunks_fails_in_both() -> None:
    letters = "abbbc"
    queue = queue_of(letters, calls=2)

    def raises(queue: JobQueue, chunk: Chunk) -> bool:
        if "b" not in letters[chunk.jobs]:
            return False
        queue.fail(chunk, BAD)
        return True

    work_off(letters, queue, raises)
    assert answered(queue) == "ac"
    assert sum(failure.responses for failure in queue.batch().failures) == 3


@pytest.mark.parametrize("letters", ["abcdefgh", "a", "aaaa"])
def test_when_nothing_works_the_cause_is_raised_after_a_few_tries(letters: str) -> None:
    queue = queue_of(letters, calls=1)
    tries = 0

    def raises(queue: JobQueue, chunk: Chunk) -> bool:
        nonlocal tries
        tries += 1
        queue.fail(chunk, BAD)
        return True

    with pytest.raises(NoCompletionsError, match=r"nothing could be generated.*does not fit") as caught:
        work_off(letters, queue, raises)
    assert caught.value.__cause__ is BAD
    assert tries <= 5


def test_failures_after_a_success_do_not_stop_the_rest() -> None:
    letters = "abcdef"
    queue = queue_of(letters, calls=6)

    def raises(queue: JobQueue, chunk: Chunk) -> bool:
        if letters[chunk.start] in "af":
            return False
        queue.fail(chunk, BAD)
        return True

    work_off(letters, queue, raises)
    assert answered(queue) == "af"
    assert [failure.prompt_id for failure in queue.batch().failures] == list("bcde")
