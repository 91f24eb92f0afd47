"""Sums over ranks, and what ranks say when they cannot have them."""

from collections.abc import Iterator
from datetime import timedelta

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage] - documented under this name

from rlhf.runtime.distributed import ALONE, RankError, Ranks, join_ranks, naming_the_rank
from tests import rank_tasks
from tests.rank_processes import RankProcesses


@pytest.fixture(scope="module")
def ranks() -> Iterator[RankProcesses]:
    processes = RankProcesses(2)
    yield processes
    processes.close()


def test_both_ranks_get_the_same_sums_maxima_totals_and_rows(ranks: RankProcesses) -> None:
    for answer in ranks.run(rank_tasks.collect):
        assert answer == ([2.0, 10.0], [3.0, 2.0], (2.0**41 + 1, 2.0), [[1.5, 2.5], [], [-4.0]])


def test_ranks_that_hold_different_things_are_refused_on_every_rank(ranks: RankProcesses) -> None:
    assert ranks.run(rank_tasks.compare, ["0f3a", "0f3a"]) == ["", ""]
    for index, message in enumerate(ranks.run(rank_tasks.compare, ["0f3a", "0e3b"])):
        assert message.startswith("the model in model.path=m differs between the nodes of the cluster (rank")
        assert f"rank {index} of 2 has" in message


def test_alone_nothing_is_sent_and_nothing_changes() -> None:
    tensor = torch.tensor([1.0, -2.0])
    ALONE.add_up(tensor)
    ALONE.maximum(tensor)
    assert tensor.tolist() == [1.0, -2.0]
    assert ALONE.total(3, 4) == (3, 4)
    row = np.array([1.0], np.float32)
    assert ALONE.join_rows({0: row}, [1])[0] is row
    ALONE.require_same("anything", lambda: pytest.fail("nobody to compare with"))
    assert not dist.is_initialized()


def test_a_rank_that_waits_in_vain_says_which_one_it_is() -> None:
    store = TCPStore("127.0.0.1", 0, is_master=True, timeout=timedelta(seconds=5), wait_for_workers=False)
    with pytest.raises(RankError, match=r"^rank 1 of 2 lost the others \(.*; one of them has died, hangs"):
        join_ranks(Ranks(1, 2), f"127.0.0.1:{store.port}", device=torch.device("cpu"), timeout_seconds=1.0)
    assert not dist.is_initialized()


def test_errors_that_are_not_of_the_group_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match=r"^shapes differ$") as caught, naming_the_rank(Ranks(0, 2)):
        raise RuntimeError("shapes differ")
    assert type(caught.value) is RuntimeError
