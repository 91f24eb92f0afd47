import numpy as np
import pytest

from reward.composite import build_reward, component_names
from reward.config import ExactAnswerRule, FunctionSource, LengthRule, ModelSource, RegexRule
from reward.interface import RewardRequest
from reward.worker import RewardWorker

GAPS = "tests.reward.scripted_rewards:gaps"


def requests(*responses, **fields):
    return [RewardRequest("", response, fields=fields) for response in responses]


def test_the_score_is_the_weighted_sum_and_components_stay_unweighted():
    sources = [RegexRule(pattern="a", weight=2.0), LengthRule(maximum_words=1, weight=0.5, name="brevity")]

    output = RewardWorker(build_reward(sources, policy_tokenizer=None)).score(requests("a b c", "b", "a"))

    assert output.components["regex"].tolist() == [1.0, 0.0, 1.0]
    assert output.components["brevity"].tolist() == [-2.0, 0.0, 0.0]
    assert output.scores.tolist() == [1.0, 0.0, 2.0]
    assert output.scores.dtype == np.float32
    assert output.failures == []


def test_what_one_source_cannot_score_has_no_score_at_all():
    sources = [FunctionSource(function=GAPS), RegexRule(pattern="n")]

    output = build_reward(sources, policy_tokenizer=None)(requests("1", "none", "2"))

    np.testing.assert_array_equal(output.scores, [1.0, np.nan, 2.0])
    np.testing.assert_array_equal(output.components["regex"], [0.0, 1.0, 0.0])
    assert [(failure.index, failure.reason) for failure in output.failures] == [
        (1, f"gaps: {GAPS} gave no finite number")
    ]


def test_the_first_reason_of_a_response_is_kept():
    sources = [ExactAnswerRule(), FunctionSource(function=GAPS)]

    output = build_reward(sources, policy_tokenizer=None)(requests("none"))

    assert [failure.reason for failure in output.failures] == [
        "exact_answer: field 'answer' of the data row is missing or empty"
    ]


def test_a_source_of_weight_zero_watches_and_its_failures_cost_nothing():
    sources = [RegexRule(pattern="n"), FunctionSource(function=GAPS, name="gold", weight=0.0)]

    output = build_reward(sources, policy_tokenizer=None)(requests("none", "1"))

    assert output.scores.tolist() == [1.0, 0.0]
    assert output.failures == []
    np.testing.assert_array_equal(output.components["gold"], [np.nan, 1.0])


def test_names_come_from_the_source_where_none_is_given():
    sources = [
        ModelSource(path="runs/senti ment/model"),
        ModelSource(path="models/judge"),
        FunctionSource(function=GAPS),
        LengthRule(name="short"),
        ExactAnswerRule(),
    ]

    assert component_names(sources) == ["senti_ment", "judge", "gaps", "short", "exact_answer"]


def test_two_sources_of_one_name_are_refused():
    with pytest.raises(ValueError, match=r"'regex' names 2 sources; give each its own reward\.<n>\.name"):
        build_reward([RegexRule(pattern="a"), RegexRule(pattern="b")], policy_tokenizer=None)


def test_a_missing_model_folder_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"reward\.path=.*no such folder"):
        build_reward([ModelSource(path=str(tmp_path / "none"))], policy_tokenizer=None)
