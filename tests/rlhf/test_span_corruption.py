"""Span corruption by hand, and what holds of every text."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf.span_corruption import corrupt, noise_spans

END, SENTINELS = 1, [90, 91, 92, 93]


def ids(*numbers: int) -> np.ndarray:
    return np.array(numbers, dtype=np.int32)


def test_the_example_of_the_paper() -> None:
    # Thank you [for inviting] me to your party [last] week
    source, target = corrupt(ids(10, 11, 12, 13, 14, 15, 16, 17, 18, 19), [(2, 4), (8, 9)], SENTINELS, end=END)
    assert source.tolist() == [10, 11, 90, 14, 15, 16, 17, 91, 19, END]
    assert target.tolist() == [90, 12, 13, 91, 18, 92, END]


def test_a_span_at_the_end_leaves_its_sentinel_last() -> None:
    source, target = corrupt(ids(10, 11, 12), [(1, 3)], SENTINELS, end=END)
    assert (source.tolist(), target.tolist()) == ([10, 90, END], [90, 11, 12, 91, END])


@pytest.mark.parametrize(("length", "noise", "spans"), [
    (100, 15, 5),  # round(100 * 0.15), round(15 / 3)
    (10, 2, 1),  # round(1.5) is 2, round(2 / 3) is 1
    (2, 1, 1),  # at least one of each
])  # fmt: skip
def test_noise_and_spans_have_the_numbers_of_the_paper(length: int, noise: int, spans: int) -> None:
    found = noise_spans(length, noise_density=0.15, mean_span_tokens=3.0, rng=np.random.default_rng(0))
    assert (sum(stop - start for start, stop in found), len(found)) == (noise, spans)


@given(st.integers(2, 200), st.floats(0.01, 0.99), st.floats(1, 10), st.integers(0, 99))
def test_spans_are_apart_and_the_text_can_be_put_together_again(
    length: int, density: float, mean: float, seed: int
) -> None:
    spans = noise_spans(length, noise_density=density, mean_span_tokens=mean, rng=np.random.default_rng(seed))
    assert spans[0][0] >= 1
    assert all(stop > start for start, stop in spans)
    assert all(after[0] > before[1] for before, after in pairwise(spans))
    tokens, sentinels = np.arange(1000, 1000 + length, dtype=np.int32), list(range(2, 2 + len(spans) + 1))
    source, target = corrupt(tokens, spans, sentinels, end=END)
    parts: dict[int, list[int]] = {}
    for token in target[:-1].tolist():
        if token < 1000:
            parts[token] = []
        else:
            parts[max(parts)].append(token)
    assert parts.pop(sentinels[-1]) == []
    rebuilt = [part for token in source[:-1].tolist() for part in (parts[token] if token < 1000 else [token])]
    assert rebuilt == tokens.tolist()


def test_every_division_of_the_noise_is_met() -> None:
    rng = np.random.default_rng(0)
    found = {tuple(noise_spans(6, noise_density=0.5, mean_span_tokens=1.5, rng=rng)) for _ in range(200)}
    # Three kept and three noise tokens in two parts each: (1, 2) or (2, 1), both ways.
    assert found == {((1, 2), (4, 6)), ((1, 3), (5, 6)), ((2, 3), (4, 6)), ((2, 4), (5, 6))}
