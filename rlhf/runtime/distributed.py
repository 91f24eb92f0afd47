"""Ranks: processes that compute one update together, and the few sums that they need of each other.

Owns torch.distributed: how ranks meet, their backend, their timeouts. Every rank runs the same program on the same
arguments, so each collective here is reached by all of them, in the same order. It knows no model and no actor.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Self

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage] - documented under this name

from rlhf.runtime.workers import WorkerError

_BACKENDS = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl"}


class RankError(WorkerError):
    """A rank cannot reach the others any more, or does not compute what they do; the message names it."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among those that train together; alone by default, and then nothing here communicates.

    Attributes:
        index: Number of this process, from 0.
        count: How many there are.
    """

    index: int = 0
    count: int = 1

    @property
    def is_alone(self) -> bool:
        """Whether there is no other rank."""
        return self.count == 1

    @property
    def is_first(self) -> bool:
        """Whether this rank speaks for all where they agree."""
        return self.index == 0

    def __str__(self) -> str:
        return f"rank {self.index} of {self.count}"

    def add_up(self, tensor: Tensor) -> None:
        """Replaces the tensor, in place, by its sum over ranks: bit for bit the same on each of them."""
        if not self.is_alone:
            dist.all_reduce(tensor)

    def maximum(self, tensor: Tensor) -> None:
        """Replaces the tensor, in place, by its elementwise maximum over ranks."""
        if not self.is_alone:
            dist.all_reduce(tensor, dist.ReduceOp.MAX)

    def total(self, *numbers: float) -> tuple[float, ...]:
        """Each number summed over ranks, in float64: exact for counts."""
        if self.is_alone:
            return numbers
        tensor = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(tensor)
        return tuple(tensor.tolist())

    def join_rows(self, own: Mapping[int, NDArray[np.float32]], lengths: Sequence[int]) -> list[NDArray[np.float32]]:
        """All rows in order, from ranks that hold some each.

        Args:
            own: Rows of this rank by index; each row is held by exactly one rank.
            lengths: Entries of each row.
        """
        if not self.is_alone:
            starts = [0, *itertools.accumulate(lengths)]
            flat = np.zeros(starts[-1], np.float32)
            for index, row in own.items():
                flat[starts[index] : starts[index + 1]] = row
            # A sum with zeros is the number itself.
            dist.all_reduce(torch.from_numpy(flat))
            own = {index: flat[start:stop] for index, (start, stop) in enumerate(itertools.pairwise(starts))}
        return [own[index] for index in range(len(lengths))]

    def require_same(self, what: str, digest_of_it: Callable[[], str]) -> None:
        """Refuses to go on where ranks differ in what must be equal.

        Args:
            what: Name for the error.
            digest_of_it: Computes its hexadecimal digest; not asked where there is one rank.

        Raises:
            ValueError: the digests of two ranks differ.
        """
        if self.is_alone:
            return
        digest = digest_of_it()
        lowest = torch.tensor([int(digit, 16) for digit in digest])
        highest = lowest.clone()
        dist.all_reduce(lowest, dist.ReduceOp.MIN)
        dist.all_reduce(highest, dist.ReduceOp.MAX)
        if not torch.equal(lowest, highest):
            raise ValueError(
                f"{what} differs between the nodes of the cluster ({self} has {digest}); copy the same files to each "
                "of them, or put them on storage that all nodes share"
            )


ALONE = Ranks()
"""The only rank."""


class MeetingPoint:
    """Where ranks find each other: a small server in the process of one of them, which must outlive the others' start.

    Args:
        host: Address of this machine, as the other ranks reach it.
        timeout_seconds: Longest wait for a rank.
    """

    def __init__(self, host: str, *, timeout_seconds: float) -> None:
        timeout = timedelta(seconds=timeout_seconds)
        self._store = TCPStore(host, 0, is_master=True, timeout=timeout, wait_for_workers=False)
        self.address = f"{host}:{self._store.port}"

    @classmethod
    def on_this_node(cls, *, timeout_seconds: float) -> Self:
        """In a Ray actor, or wherever Ray is installed: at the address by which the nodes of its cluster meet."""
        # Ray is there wherever there is more than one rank.
        from ray.util import get_node_ip_address  # noqa: PLC0415 - Ray need not be installed for one rank

        return cls(get_node_ip_address(), timeout_seconds=timeout_seconds)


def join_ranks(ranks: Ranks, address: str, *, device: torch.device, timeout_seconds: float) -> None:
    """Makes this process a rank: gloo between CPUs, and NCCL between GPUs.

    Args:
        ranks: Which one.
        address: Of the `MeetingPoint`.
        device: Where this rank computes.
        timeout_seconds: Longest wait for the others, now and in every collective.

    Raises:
        RankError: the others were not there in time.
    """
    host, _, port = address.rpartition(":")
    timeout = timedelta(seconds=timeout_seconds)
    if device.type == "cuda":
        torch.cuda.set_device(device.index or 0)
    with naming_the_rank(ranks):
        store = TCPStore(host, int(port), is_master=False, timeout=timeout, wait_for_workers=False)
        dist.init_process_group(
            _BACKENDS[device.type], store=store, rank=ranks.index, world_size=ranks.count, timeout=timeout
        )


@contextmanager
def naming_the_rank(ranks: Ranks) -> Iterator[None]:
    """What torch.distributed raises inside, because another rank is gone or late, is raised as a `RankError`."""
    try:
        yield
    except RuntimeError as error:
        # Gloo's errors have no class of their own.
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise RankError(
            f"{ranks} lost the others ({reason}); one of them has died, hangs, or cannot be reached over the network"
        ) from error
