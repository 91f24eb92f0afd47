"""A process' place in a group that broadcasts weights: torch.distributed beside the group that trains.

Owns the backend, its timeouts, and the end of a group that has lost a member: an error in this process, never its end.
The ranks that train are `rlhf.runtime.distributed`'s. Ray's own tensor transports over gloo and NCCL do the same
between actors, but end both of them when one is lost (Ray 2.60, `rdt_manager`), and with the learner the run.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage] - documented under this name

from rollout.weight_broadcast import BroadcastError

_POLL_SECONDS = 0.001


class BroadcastGroup:
    """This process' membership; rank 0 sends.

    Over gloo between CPUs, over NCCL between GPUs, which has not been tried.

    Args:
        address: Of the group's `MeetingPoint`.
        rank: This process.
        count: How many there are.
        device: Where the weights are.
        timeout_seconds: Longest wait for the others, now and in every broadcast.

    Raises:
        BroadcastError: if the others were not there in time.
    """

    def __init__(self, address: str, rank: int, count: int, *, device: torch.device, timeout_seconds: float) -> None:
        self._device, self._timeout_seconds = device, timeout_seconds
        self._name = f"rank {rank} of {count} in the group that broadcasts weights"
        host, _, port = address.rpartition(":")
        timeout = timedelta(seconds=timeout_seconds)
        # Their type stubs have no collectives.
        self._group: Any
        with self._naming():
            store = TCPStore(host, int(port), is_master=False, timeout=timeout, wait_for_workers=False)
            if device.type == "cuda":
                options = dist.ProcessGroupNCCL.Options()
                options._timeout = timeout
                self._group = dist.ProcessGroupNCCL(store, rank, count, options)
            else:
                self._group = dist.ProcessGroupGloo(store, rank, count, timeout)

    def send(self, buffer: Tensor) -> None:
        """Gives a tensor of rank 0 to all others, who `receive` one of its size.

        Raises:
            BroadcastError: if one of them is gone or late. The group is of no use from then on.
        """
        options = dist.BroadcastOptions()
        options.rootRank = 0
        with self._naming():
            self._wait(self._group.broadcast([buffer], options))

    def receive(self, size_bytes: int) -> Tensor:
        """The tensor that rank 0 sends, (size_bytes,) uint8.

        Raises:
            BroadcastError: as `send`.
        """
        buffer = torch.empty(size_bytes, dtype=torch.uint8, device=self._device)
        self.send(buffer)
        return buffer

    def _wait(self, work: dist.Work) -> None:
        if self._device.type != "cuda":
            work.wait()
            return
        # NCCL's own timeout ends the process, so this one is shorter, and takes the communicator down alone.
        deadline = time.monotonic() + 0.9 * self._timeout_seconds
        while not work.is_completed():
            if time.monotonic() > deadline:
                self._group.abort()
                raise BroadcastError(f"{self._name}: another member is late by {0.9 * self._timeout_seconds:g} s")
            time.sleep(_POLL_SECONDS)
        work.wait()

    @contextmanager
    def _naming(self) -> Iterator[None]:
        try:
            yield
        except BroadcastError:
            raise
        except RuntimeError as error:
            # What torch.distributed raises has no class of its own (gloo), or several (stores, NCCL).
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise BroadcastError(f"{self._name} lost the others ({reason})") from error
