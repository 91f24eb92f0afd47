import math

import pytest

from reward.label_strength import read_margin, read_strengths, read_weight, read_win_probability
from reward.row_fields import BadRowError

RESPONSES = [{"text": "a", "score": -1.5}, {"text": "b", "score": 2}, {"text": "c", "score": 0.25}]


def test_what_a_row_says_is_read():
    row = {"weight": 3, "margin": 0.5, "win_probability": 0.75, "strengths": [1, -2.5, 0]}

    assert read_weight(row) == 3.0
    assert read_margin(row["margin"]) == (0.5, 0.0)
    assert read_margin([4, -0.5]) == (4.0, -0.5)
    assert read_win_probability(row) == 0.75
    assert read_strengths(row, RESPONSES) == (1.0, -2.5, 0.0)


@pytest.mark.parametrize("row", [{}, dict.fromkeys(("weight", "margin", "win_probability", "strengths"))])
def test_what_a_row_does_not_say_is_certain_and_of_unknown_strength(row):
    assert (read_weight(row), read_win_probability(row)) == (1.0, 1.0)
    assert read_margin(row.get("margin")) is None
    assert read_strengths(row, ["a", "b"]) is None


def test_scores_of_responses_stand_in_for_strengths_where_all_have_one():
    assert read_strengths({}, RESPONSES) == (-1.5, 2.0, 0.25)
    assert read_strengths({}, [*RESPONSES[:2], {"text": "c"}]) is None
    assert read_strengths({}, [*RESPONSES[:2], {"text": "c", "score": "good"}]) is None


@pytest.mark.parametrize(
    ("read", "written", "message"),
    [
        (read_weight, {"weight": -1}, "field 'weight' is -1; a number of at least 0"),
        (read_weight, {"weight": "2"}, "field 'weight' is '2'"),
        (read_weight, {"weight": True}, "field 'weight' is True"),
        (read_weight, {"weight": math.nan}, "field 'weight' is nan"),
        (read_margin, -0.5, "field 'margin' is -0.5"),
        (read_margin, math.inf, "field 'margin' is inf"),
        (read_margin, "large", "field 'margin' is 'large'"),
        (read_margin, [1, 2], r"field 'margin' is \[1, 2\]; .* not above the first"),
        (read_margin, [2, None], r"field 'margin' is \[2, None\]"),
        (read_win_probability, {"win_probability": 0.5}, "field 'win_probability' is 0.5; .* above 0.5"),
        (read_win_probability, {"win_probability": 1.2}, "field 'win_probability' is 1.2"),
        (read_win_probability, {"win_probability": 0.3}, "swap"),
    ],
)
def test_a_bad_number_is_named_with_its_remedy(read, written, message):
    with pytest.raises(BadRowError, match=message):
        read(written)


@pytest.mark.parametrize("strengths", [[1, 2], [1, 2, math.nan], "123", 3, [1, 2, None]])
def test_strengths_are_one_finite_number_for_each_response(strengths):
    with pytest.raises(BadRowError, match=r"field 'strengths' is .*; it must hold 3 finite numbers"):
        read_strengths({"strengths": strengths}, RESPONSES)


def test_a_score_that_is_no_number_is_named():
    with pytest.raises(BadRowError, match=r"field 'responses\[1\]\.score' is nan"):
        read_strengths({}, [RESPONSES[0], {"text": "b", "score": math.nan}])
