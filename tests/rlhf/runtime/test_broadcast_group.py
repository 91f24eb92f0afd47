"""A group that broadcasts, over gloo, whose members are threads here."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from rlhf.runtime.broadcast_group import BroadcastGroup
from rlhf.runtime.distributed import MeetingPoint
from rollout.weight_broadcast import BroadcastError

CPU = torch.device("cpu")
SENT = torch.arange(1000).view(torch.uint8)


def join(meeting: MeetingPoint, count: int, *, timeout_seconds: float = 30.0) -> list[BroadcastGroup]:
    def one(rank: int) -> BroadcastGroup:
        return BroadcastGroup(meeting.address, rank, count, device=CPU, timeout_seconds=timeout_seconds)

    with ThreadPoolExecutor(count) as executor:
        return list(executor.map(one, range(count)))


def test_all_members_receive_what_the_first_sends() -> None:
    meeting = MeetingPoint("127.0.0.1", timeout_seconds=30.0)
    sender, *receivers = join(meeting, 3)
    with ThreadPoolExecutor(3) as executor:
        for sent in (SENT, SENT + 1):
            sending = executor.submit(sender.send, sent.clone())
            receiving = [executor.submit(receiver.receive, len(sent)) for receiver in receivers]
            sending.result()
            assert all(torch.equal(future.result(), sent) for future in receiving)


def test_a_member_that_does_not_come_is_waited_for_as_long_as_allowed() -> None:
    meeting = MeetingPoint("127.0.0.1", timeout_seconds=30.0)
    start = time.monotonic()
    with pytest.raises(BroadcastError, match="rank 0 of 2 in the group that broadcasts weights lost the others"):
        BroadcastGroup(meeting.address, 0, 2, device=CPU, timeout_seconds=1.0)
    assert time.monotonic() - start < 20


def test_a_member_that_is_gone_breaks_the_broadcast_with_an_error() -> None:
    meeting = MeetingPoint("127.0.0.1", timeout_seconds=30.0)
    members = join(meeting, 2, timeout_seconds=2.0)
    sender = members.pop(0)
    members.clear()
    # More than fits into a socket's buffer.
    with pytest.raises(BroadcastError, match="rank 0 of 2"):
        sender.send(torch.zeros(2**26, dtype=torch.uint8))
