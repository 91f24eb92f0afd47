import numpy as np
import pytest

from reward.config import FunctionSource
from reward.functions import RewardFunctionError, call_function, load_function

THIS = "tests.reward.scripted_rewards"


def source(name, **arguments):
    return FunctionSource(function=name, arguments=arguments)


def test_a_function_gets_prompts_responses_and_its_arguments():
    given = source(f"{THIS}:prompt_share", scale=2.0)

    scores = call_function(given, load_function(given), ["ab", "abc"], ["abcd", "abc"])

    assert scores.tolist() == [1.0, 2.0]
    assert scores.dtype == np.float32


def test_none_says_that_a_response_could_not_be_scored():
    given = source(f"{THIS}:gaps")

    scores = call_function(given, load_function(given), ["", "", ""], ["1", "none", "nan"])

    np.testing.assert_array_equal(scores, [1.0, np.nan, np.nan])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (source("no_such_module:f"), "No module named 'no_such_module'"),
        (source(f"{THIS}:no_such_function"), "has no function 'no_such_function'"),
        (source(f"{THIS}:NOT_A_FUNCTION"), "has no function"),
        (source(f"{THIS}:prompt_share", scale=1.0, size=1), "unexpected keyword argument 'size'"),
        (source(f"{THIS}:prompt_share"), "missing a required"),
    ],
)
def test_what_cannot_be_called_is_refused_before_the_run(given, message):
    with pytest.raises(ValueError, match=message):
        load_function(given)


@pytest.mark.parametrize(
    ("name", "message"),
    [("too_few", "returned 1 numbers for 2 responses"), ("one_number", "returned 0.5"), ("words", "returned")],
)
def test_an_answer_that_is_not_one_number_a_response_stops_the_run(name, message):
    given = source(f"{THIS}:{name}")

    with pytest.raises(RewardFunctionError, match=message):
        call_function(given, load_function(given), ["", ""], ["a", "b"])


def test_a_module_in_the_current_folder_is_found(tmp_path, monkeypatch):
    (tmp_path / "my_own_reward.py").write_text("def score(prompts, responses):\n    return [3.0] * len(responses)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", ["/nowhere"])
    given = source("my_own_reward:score")

    assert call_function(given, load_function(given), [""], ["x"]).tolist() == [3.0]
