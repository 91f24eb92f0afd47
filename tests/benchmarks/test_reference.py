"""What a reference keeps of its runs, and how it compares two; the runs themselves are `make reference`."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks.reference_curves import curves_of, over, rounded
from tests.benchmarks.reference_summary import comparison_lines, gold_at, numbers_of, peak_of, read_parts

STORED = Path(__file__).parent / "results" / "reference"


def part(seed: int) -> dict[str, Any]:
    """A run whose gold is 2 d - d^2 log-like: up to a KL of 4 it rises, then it falls."""
    kls = [step / 2 for step in range(31)]
    gold = [math.sqrt(kl) * (1 - 0.5 * math.log(math.sqrt(kl) or 1)) + seed for kl in kls]
    curve = {"kl": [[step, kl] for step, kl in enumerate(kls)], "gold": [[step, one] for step, one in enumerate(gold)]}
    return {"seed": seed, "curves": {"ppo_long": curve}}


def test_curves_hold_the_steps_that_were_logged_and_finite() -> None:
    rows = [{"step": 1, "a/b": 0.5}, {"step": 2}, {"step": 3, "a/b": math.nan}, {"step": 4, "a/b": 2.0}]
    curves = curves_of(rows, {"short": "a/b", "absent": "c/d"})
    assert curves == {"short": [[1, 0.5], [4, 2.0]], "absent": []}
    assert over({"x": [[1, 5.0], [4, 6.0]], "y": [[4, 7.0], [9, 8.0]]}, "x", "y") == ([6.0], [7.0])


def test_numbers_are_rounded_for_storage_wherever_they_stand() -> None:
    assert rounded({"a": [1.2345678, 7, "x"], "b": (math.inf,)}) == {"a": [1.2346, 7, "x"], "b": [None]}


def test_the_peak_and_the_gold_at_a_distance_are_those_of_the_curve() -> None:
    one = part(0)
    # d (1 - 0.5 log d) peaks at d = e.
    assert peak_of(one).kl == pytest.approx(math.e**2, rel=1e-3)
    assert gold_at(one, 4.0) == pytest.approx(2 * (1 - 0.5 * math.log(2)), abs=0.02)
    assert gold_at(one, 100.0) is None


@pytest.mark.skipif(not list(STORED.glob("world-*.json")), reason="no reference is stored")
def test_the_stored_reference_says_what_it_was_made_with_and_compares_with_itself() -> None:
    parts = read_parts(STORED)
    for stored in parts["world"]:
        assert {"cpu", "cores", "versions", "git_commit"} <= stored["machine"].keys()
        assert numbers_of("world", stored)["ppo KL"] > 0
    lines = comparison_lines(parts, parts)
    assert any("world" in line for line in lines)
    for path in STORED.glob("*.json"):
        assert json.loads(path.read_text(encoding="utf-8"))["seed"] >= 0
