"""Judges that compare: both orders are asked, and a verdict that turns with the order is a tie."""

import numpy as np
import pytest

from rlhf.evaluation.comparing import Choice, FunctionVerdicts, JudgeFunctionError, Verdicts, judge_both_orders
from rlhf.evaluation.config import FunctionJudge


def longer(prompts, answers_a, answers_b, *, margin=0, silent_on=""):
    """Prefers the longer answer; None on one prompt."""
    found = []
    for prompt, a, b in zip(prompts, answers_a, answers_b, strict=True):
        difference = len(a) - len(b)
        choice = "tie" if abs(difference) <= margin else "A" if difference > 0 else "B"
        found.append(None if silent_on and prompt == silent_on else choice)
    return found


def one_word(*_pairs):
    return "A"


def nonsense(prompts, *_answers):
    return ["better"] * len(prompts)


def scripted(table):
    """A judge of the pairs (a, b) in a table."""

    def judge(_prompts, answers_a, answers_b):
        choices = [table.get((a, b)) for a, b in zip(answers_a, answers_b, strict=True)]
        return Verdicts(choices, {index: "no entry" for index, choice in enumerate(choices) if choice is None})

    return judge


def test_both_orders_decide_and_disagreement_is_a_tie():
    table = {
        ("win", "lose"): "A",
        ("lose", "win"): "B",
        ("bad", "good"): "B",
        ("good", "bad"): "A",
        ("x", "y"): "A",  # always the first
        ("y", "x"): "A",
        ("half", "sure"): "tie",  # a tie one way only
        ("sure", "half"): "A",
        ("t1", "t2"): "tie",
        ("t2", "t1"): "tie",
        ("lost", "one"): "A",  # no entry for the other order
    }
    candidate, baseline = ["win", "bad", "x", "half", "t1", "lost"], ["lose", "good", "y", "sure", "t2", "one"]

    found = judge_both_orders(scripted(table), ["p"] * 6, candidate, baseline)

    np.testing.assert_array_equal(found.outcomes, [1.0, 0.0, 0.5, 0.5, 0.5, np.nan])
    assert found.reasons == {5: "no entry"}
    assert found.consistency == pytest.approx(3 / 5)
    # First shown: win, good, x, y, sure, lost; second shown: win, good.
    assert found.first_preferred == pytest.approx(6 / 8)


def test_a_judge_that_always_takes_the_first_decides_nothing():
    def always_first(prompts, _answers_a, _answers_b):
        verdicts: list[Choice] = ["A"] * len(prompts)
        return Verdicts(verdicts, {})

    found = judge_both_orders(always_first, ["p", "q"], ["a", "b"], ["c", "d"])
    assert found.outcomes.tolist() == [0.5, 0.5]
    assert (found.consistency, found.first_preferred) == (0.0, 1.0)


def test_equal_answers_are_a_tie_that_nobody_is_asked_about():
    asked = []

    def judge(prompts, answers_a, answers_b):
        asked.extend(zip(prompts, answers_a, answers_b, strict=True))
        order: list[Choice] = ["B", "A"]
        return Verdicts([order[2 * place // len(prompts)] for place in range(len(prompts))], {})

    found = judge_both_orders(judge, ["p", "q"], ["same", "mine"], ["same", "theirs"])

    assert found.outcomes.tolist() == [0.5, 0.0]
    assert asked == [("q", "mine", "theirs"), ("q", "theirs", "mine")]
    assert np.isnan(judge_both_orders(judge, ["p"], ["same"], ["same"]).consistency)


def function_judge(name, **arguments):
    return FunctionVerdicts(FunctionJudge(function=f"{__name__}:{name}", arguments=arguments))


def test_a_python_function_judges_and_may_keep_silent():
    judge = function_judge("longer", margin=1, silent_on="q")
    found = judge_both_orders(judge, ["p", "q", "r"], ["long", "a", "abc"], ["s", "bb", "ab"])
    np.testing.assert_array_equal(found.outcomes, [1.0, np.nan, 0.5])
    assert found.reasons == {1: "the function gave no verdict"}


@pytest.mark.parametrize(("name", "message"), [("one_word", "1 verdicts for 2 pairs"), ("nonsense", "'better'")])
def test_a_function_that_gives_no_verdicts_is_an_error(name, message):
    with pytest.raises(JudgeFunctionError, match=message):
        function_judge(name)(["p", "q"], ["a", "b"], ["c", "d"])


def test_a_function_that_does_not_exist_or_fit_is_refused():
    with pytest.raises(ValueError, match=r"judges\.function.*has no function 'shorter'"):
        function_judge("shorter")
    with pytest.raises(ValueError, match=r"judges\.function.*is called as f\(prompts, answers_a"):
        function_judge("longer", depth=3)
