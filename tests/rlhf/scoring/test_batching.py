"""Calls that arrive together share a pass, get their own scores, and are turned away rather than piled up."""

import asyncio
import threading

import numpy as np
import pytest

from reward.interface import RewardFailure, RewardOutput, RewardRequest
from rlhf.scoring.batching import Batcher, BusyError, PassFailedError, Tally, part_of


class Lengths:
    """Scores a response by its length, fails on "bad", raises on "raise", and can be held."""

    def __init__(self):
        self.passes = []
        self.free = threading.Event()
        self.free.set()

    def __call__(self, requests):
        assert self.free.wait(5)
        texts = [request.response for request in requests]
        self.passes.append(texts)
        if "raise" in texts:
            raise RuntimeError("a defect")
        scores = np.array([np.nan if text == "bad" else len(text) for text in texts], np.float32)
        bad = [RewardFailure(index, "it is bad") for index, text in enumerate(texts) if text == "bad"]
        return RewardOutput(scores, {"length": scores}, bad)


def requests(*texts):
    return [RewardRequest("p", text) for text in texts]


def run(scenario, reward=None, **options):
    """Runs `scenario(batcher)` beside the batcher's own loop."""

    async def together():
        settings = {"responses_per_batch": 4, "waiting_responses": 8, "gather_seconds": 0.01} | options
        batcher = Batcher(reward or Lengths(), names=["length"], **settings)
        worker = asyncio.create_task(batcher.run())
        try:
            return await asyncio.wait_for(scenario(batcher), 5)
        finally:
            worker.cancel()

    return asyncio.run(together())


def test_calls_that_arrive_together_share_a_pass_and_get_their_own_scores():
    reward = Lengths()

    async def scenario(batcher):
        outputs = await asyncio.gather(
            batcher.score(requests("a", "bad")), batcher.score(requests("ccc")), batcher.score(requests("bad"))
        )
        return outputs, batcher.tally

    (first, second, third), tally = run(scenario, reward)

    assert reward.passes == [["a", "bad", "ccc", "bad"]]
    np.testing.assert_array_equal(first.scores, [1.0, np.nan])
    np.testing.assert_array_equal(first.components["length"], [1.0, np.nan])
    assert second.scores.tolist() == [3.0]
    assert [(f.index, f.reason) for f in first.failures] == [(1, "it is bad")]
    assert [f.index for f in third.failures] == [0]
    assert tally == Tally(calls=3, passes=1, responses=4, failures=2)


def test_a_pass_takes_whole_calls_in_their_order_up_to_its_size():
    reward = Lengths()

    async def scenario(batcher):
        await asyncio.gather(*(batcher.score(requests(*texts)) for texts in ("abc", "de", "f", "ghijkl", "m")))

    run(scenario, reward, waiting_responses=99)

    assert reward.passes == [list("abc"), list("def"), list("ghijkl"), ["m"]]


def test_the_next_pass_fills_while_one_runs():
    reward = Lengths()
    reward.free.clear()

    async def scenario(batcher):
        first = asyncio.create_task(batcher.score(requests("a")))
        await asyncio.sleep(0.1)
        later = [asyncio.create_task(batcher.score(requests(text))) for text in ("bb", "ccc")]
        await asyncio.sleep(0.05)
        reward.free.set()
        return [(await task).scores.tolist() for task in (first, *later)]

    assert run(scenario, reward) == [[1.0], [2.0], [3.0]]
    assert reward.passes == [["a"], ["bb", "ccc"]]


def test_who_comes_when_too_many_wait_is_turned_away_at_once():
    reward = Lengths()
    reward.free.clear()

    async def scenario(batcher):
        running = asyncio.create_task(batcher.score(requests("a")))
        await asyncio.sleep(0.1)
        waiting = asyncio.create_task(batcher.score(requests(*"bcdefg")))
        await asyncio.sleep(0)
        with pytest.raises(BusyError):
            await batcher.score(requests("h", "i", "j"))
        last = asyncio.create_task(batcher.score(requests("h", "i")))
        await asyncio.sleep(0)
        reward.free.set()
        return [len((await task).scores) for task in (running, waiting, last)]

    assert run(scenario, reward) == [1, 6, 2]


def test_a_call_larger_than_the_queue_is_scored_where_nobody_waits():
    assert len(run(lambda batcher: batcher.score(requests(*"abcdefghijkl"))).scores) == 12


def test_a_pass_that_raises_fails_its_calls_and_not_the_next(caplog):
    async def scenario(batcher):
        outcomes = await asyncio.gather(
            batcher.score(requests("raise")), batcher.score(requests("a")), return_exceptions=True
        )
        return outcomes, await batcher.score(requests("bb"))

    outcomes, after = run(scenario)

    assert [type(outcome) for outcome in outcomes] == [PassFailedError, PassFailedError]
    assert after.scores.tolist() == [2.0]
    assert "a defect" in caplog.text


def test_a_caller_who_left_costs_the_others_nothing():
    reward = Lengths()
    reward.free.clear()

    async def scenario(batcher):
        leaving = asyncio.create_task(batcher.score(requests("a")))
        staying = asyncio.create_task(batcher.score(requests("bb")))
        await asyncio.sleep(0.05)
        leaving.cancel()
        await asyncio.sleep(0)
        reward.free.set()
        return await staying

    assert run(scenario, reward).scores.tolist() == [2.0]


def test_a_call_without_requests_names_the_components_and_runs_nothing():
    reward = Lengths()

    output = run(lambda batcher: batcher.score([]), reward)

    assert output.scores.shape == (0,)
    assert {name: scores.tolist() for name, scores in output.components.items()} == {"length": []}
    assert reward.passes == []


def test_a_part_is_what_its_requests_alone_would_have_given():
    reward = Lengths()
    whole = reward(requests("a", "bad", "ccc", "bad", "eeeee"))

    part, alone = part_of(whole, 1, 4), reward(requests("bad", "ccc", "bad"))

    np.testing.assert_array_equal(part.scores, alone.scores)
    np.testing.assert_array_equal(part.components["length"], alone.components["length"])
    assert part.failures == alone.failures
