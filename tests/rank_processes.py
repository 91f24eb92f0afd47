"""Processes that are the ranks of one group, and run the same function side by side."""

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch

from rlhf.runtime.distributed import MeetingPoint, Ranks, join_ranks

_SECONDS = 60.0
_HOST = "127.0.0.1"


class RankProcesses:
    """`count` processes in one gloo group; `run` gives each its `Ranks` and the same arguments.

    Args:
        count: How many.
    """

    def __init__(self, count: int) -> None:
        context = multiprocessing.get_context("forkserver")
        # Imported once for all ranks.
        context.set_forkserver_preload(["torch", "transformers", "peft"])
        self._meeting_point = MeetingPoint(_HOST, timeout_seconds=_SECONDS)
        self._pipes: list[Connection] = []
        self._processes: list[Any] = []
        for index in range(count):
            ours, theirs = context.Pipe()
            arguments = (Ranks(index, count), self._meeting_point.address, theirs)
            process = context.Process(target=_serve, args=arguments, daemon=True)
            process.start()
            self._pipes.append(ours)
            self._processes.append(process)

    def run(self, function: Callable[..., Any], *arguments: Any, **keywords: Any) -> list[Any]:
        """What `function(ranks, ...)` returned on each rank; raises what it raised on the first that failed."""
        for pipe in self._pipes:
            pipe.send((function, arguments, keywords))
        answers = [self._answer(index) for index in range(len(self._pipes))]
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
        return answers

    def close(self) -> None:
        """Ends the processes."""
        for process in self._processes:
            process.kill()
            process.join()

    def _answer(self, index: int) -> Any:
        if not self._pipes[index].poll(_SECONDS):
            return TimeoutError(f"rank {index} has not answered")
        try:
            return self._pipes[index].recv()
        except EOFError:
            return RuntimeError(f"rank {index} died")


def _serve(ranks: Ranks, address: str, pipe: Connection) -> None:
    torch.set_num_threads(1)
    join_ranks(ranks, address, device=torch.device("cpu"), timeout_seconds=_SECONDS)
    while True:
        function, arguments, keywords = pipe.recv()
        try:
            answer = function(ranks, *arguments, **keywords)
        except Exception as error:  # noqa: BLE001 - raised in the test's process
            answer = error
        pipe.send(answer)
