"""Keys are small numbers here, one head of size 1, so that a buffer reads like the table in the module's docstring."""

from collections.abc import Sequence

import pytest
import torch

from rollout.slot_cache import SlotCache

PREFILLED = [[11, 12, 13, 0], [21, 22, 0, 0], [31, 32, 33, 34]]
"""Keys of three prompts of 3, 2 and 4 tokens, right-padded."""


def states(rows: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    keys = torch.tensor(rows, dtype=torch.float32)[:, None, :, None]
    return keys, -keys


class Cache:
    """A cache of one layer, and what a model would see in it."""

    def __init__(self, slots: int) -> None:
        self.cache = SlotCache(layers=1, slots=slots, device=torch.device("cpu"))

    def insert(self, *rows: int, tokens: int) -> None:
        self.cache.insert([states(PREFILLED)], rows, tokens)

    def step(self, *new: int) -> list[list[int]]:
        """Appends one token a row; returns the keys that each row sees."""
        mask = self.cache.open_column()
        assert self.cache.get_mask_sizes(1, 0) == (mask.shape[1], 0)
        keys, values = self.cache.update(*states([[key] for key in new]), 0)
        assert torch.equal(values, -keys)
        assert keys.shape == (len(new), 1, mask.shape[1], 1)
        # The newest token is the query; transformers masks what comes behind it.
        assert not mask[:, self.cache.get_query_offset(0) + 1 :].any()
        assert mask[:, self.cache.get_query_offset(0)].all()
        return [keys[row, 0, mask[row], 0].int().tolist() for row in range(len(new))]


def test_each_row_sees_its_own_tokens_and_ends_at_the_common_column() -> None:
    cache = Cache(slots=3)
    cache.insert(2, tokens=4)
    cache.insert(1, tokens=2)
    assert cache.step(35, 23) == [[31, 32, 33, 34, 35], [21, 22, 23]]
    assert cache.step(36, 24) == [[31, 32, 33, 34, 35, 36], [21, 22, 23, 24]]


def test_a_longer_prompt_may_join_later() -> None:
    cache = Cache(slots=3)
    cache.insert(1, tokens=2)
    cache.insert(2, tokens=4)
    cache.insert(0, tokens=3)
    assert cache.step(23, 35, 14) == [[21, 22, 23], [31, 32, 33, 34, 35], [11, 12, 13, 14]]


def test_responses_to_one_prompt_share_its_prefill_and_then_part() -> None:
    cache = Cache(slots=2)
    cache.insert(0, 0, tokens=3)
    assert cache.step(4, 5) == [[11, 12, 13, 4], [11, 12, 13, 5]]


def test_the_last_rows_move_into_the_holes_of_those_that_ended() -> None:
    cache = Cache(slots=4)
    cache.insert(0, tokens=3)
    cache.insert(1, tokens=2)
    cache.insert(2, tokens=4)
    cache.insert(1, tokens=2)
    cache.step(14, 23, 35, 24)
    assert cache.cache.remove([0, 2]) == [(3, 0)]
    assert cache.cache.live == 2
    assert cache.step(25, 26) == [[21, 22, 24, 25], [21, 22, 23, 26]]


@pytest.mark.parametrize("ended", [[2], [0, 1, 2]])
def test_rows_at_the_end_need_no_move(ended: list[int]) -> None:
    cache = Cache(slots=3)
    cache.insert(0, tokens=3)
    cache.insert(1, 1, tokens=2)
    cache.step(14, 23, 24)
    assert cache.cache.remove(ended) == []
    assert cache.cache.live == 3 - len(ended)


def test_a_freed_slot_starts_clean() -> None:
    cache = Cache(slots=1)
    cache.insert(2, tokens=4)
    for key in range(50):
        cache.step(key)
    cache.cache.remove([0])
    cache.insert(1, tokens=2)
    assert cache.step(23) == [[21, 22, 23]]


def test_the_buffers_stay_as_wide_as_the_longest_row_however_long_decoding_goes_on() -> None:
    cache = Cache(slots=2)
    widest = 0
    cache.insert(0, tokens=3)
    for turn in range(40):
        cache.insert(1, tokens=2)
        seen = [cache.step(turn, key)[1] for key in range(5)]
        assert seen[-1] == [21, 22, 0, 1, 2, 3, 4]
        # The older row ends; the younger one takes its place.
        assert cache.cache.remove([0]) == [(1, 0)]
        widest = max(widest, cache.cache.get_max_length(0))
    assert widest < 3 + 2 * 5 + 2 * 32


def test_spare_columns_hold_finite_numbers_because_they_are_multiplied_by_zero() -> None:
    cache = Cache(slots=2)
    cache.insert(0, tokens=3)
    cache.cache.open_column()
    for buffer in cache.cache.update(*states([[14]]), 0):
        assert buffer.isfinite().all()
