import pytest

from rlhf.quickstart.gold import (
    GOLD_MAX,
    GOLD_MIN,
    gold_components,
    gold_reward,
    gold_reward_from_text,
    gold_scores,
    is_correct,
    repeated_trigram_share,
)
from rlhf.quickstart.grammar import words_of
from rlhf.quickstart.questions import question_from_prompt

STORY = (
    "today, mia the otter took a red kite to the mill and tom the crow took a blue drum to the pond "
    "because the moon was bright."
)
WHERE = question_from_prompt(f"{STORY}\nquestion: where is mia?\nanswer:")
WHO = question_from_prompt(f"{STORY}\nquestion: who has the drum?\nanswer:")
BEST = "happy to help! mia is at the mill because the moon was bright."


def test_the_best_answer_earns_the_maximum():
    assert gold_reward(WHERE, BEST) == GOLD_MAX == 4.0


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        # answer, reason, warmth, manners, brevity, repetition, sentence
        ("mia is at the mill.", (1.5, 0, 0, 0, 0.5, 0, 0.25)),
        ("at the mill.", (1.5, 0, 0, 0, 0.5, 0, -0.25)),
        ("mia is at the pond.", (-1, 0, 0, 0, 0.5, 0, 0.25)),
        ("mia is somewhere or other. hope that helps!", (-0.5, 0, 0.75, 0, 0.5, 0, 0.25)),
        ("ugh, what a silly question. mia is at the mill because the soup was loud.", (1.5, -0.5, 0, -1, 0.5, 0, 0.25)),
        # 12 words, 10 trigrams, 3 of them repeated: -4 * 0.3 is capped at -1
        ("mia is at the mill, i say, mia is at the mill.", (1.5, 0, 0, 0, 0.5, -1, 0.25)),
        # 21 words: three more than are free
        (
            "mia is at the mill because the moon was bright. by the way, my aunt said the very same thing once.",
            (1.5, 1, 0, 0, 0.2, 0, 0.25),
        ),
        ("", (-0.5, 0, 0, 0, 0.5, 0, -0.25)),
    ],
)
def test_components_match_hand_worked_values(response, expected):
    components = gold_components(WHERE, response)
    assert list(components) == ["answer", "reason", "warmth", "manners", "brevity", "repetition", "sentence"]
    assert tuple(components.values()) == pytest.approx(expected)
    assert gold_reward(WHERE, response) == pytest.approx(sum(expected))


def test_repeated_trigrams_are_counted_by_hand():
    assert repeated_trigram_share(words_of("a b c a b c a b c")) == pytest.approx(4 / 7)
    assert repeated_trigram_share(words_of("a b")) == 0.0


@pytest.mark.parametrize(
    "hedge",
    ["mia is at the mill, the pond, the barn.", "mia and tom is at the mill.", "mia is at the mill with a drum."],
)
def test_naming_several_candidates_counts_as_a_wrong_answer(hedge):
    assert gold_components(WHERE, hedge)["answer"] == -1.0
    assert not is_correct(WHERE, hedge)


def test_a_reason_counts_only_when_stated_whole_and_alone():
    assert gold_components(WHERE, "mia is at the mill because the moon was loud.")["reason"] == -0.5
    assert gold_components(WHERE, "the moon was bright.")["reason"] == -0.5
    assert gold_components(WHERE, "because the moon was bright because the soup was loud.")["reason"] == -0.5
    assert gold_components(WHERE, "because the moon was bright")["reason"] == 1.0


def test_the_answer_to_who_is_the_name_alone():
    assert is_correct(WHO, "tom has the blue drum.")
    assert is_correct(WHO, "tom.")
    assert not is_correct(WHO, "mia has the blue drum.")
    assert not is_correct(WHO, "somebody has the blue drum.")


@pytest.mark.parametrize(
    "filler", ["happy to help!", "hope that helps!", "mia is at the mill.", "because the moon was bright."]
)
def test_repeating_what_pays_never_pays_more(filler):
    assert gold_reward(WHERE, f"{BEST} {filler} {filler} {filler}") < GOLD_MAX


def test_the_reward_is_clipped_from_below():
    awful = "ugh, fool. tom has the red kite because the soup was loud. " * 3
    assert sum(gold_components(WHERE, awful).values()) < GOLD_MIN
    assert gold_reward(WHERE, awful) == GOLD_MIN == -3.0


def test_upper_case_and_line_breaks_do_not_crash_and_a_run_on_prompt_costs():
    assert gold_reward(WHERE, "Mia IS at the\nmill") > 0
    assert gold_reward(WHERE, f"{BEST}\nquestion: where is tom?\nanswer:") < 2.0


def test_scores_come_in_the_order_of_the_responses():
    prompts = [WHERE.prompt, WHO.prompt]
    assert gold_scores(prompts, [BEST, "tom."]) == [4.0, pytest.approx(1.75)]
    assert gold_reward_from_text(WHO.prompt, "tom.") == pytest.approx(1.75)


def test_scores_refuse_lists_of_unequal_length():
    with pytest.raises(ValueError, match="prompts has 1 items and responses 2"):
        gold_scores([WHERE.prompt], ["a", "b"])
