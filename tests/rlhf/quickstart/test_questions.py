import json
import random

import pytest

from rlhf.quickstart.grammar import sample_scene
from rlhf.quickstart.questions import ask, question_from_prompt

STORY = (
    "today, mia the otter took a red kite to the mill and tom the crow took a blue drum to the pond "
    "because the moon was bright."
)


@pytest.mark.parametrize(
    ("text", "asked", "told", "answer"),
    [
        ("where is tom?", "place", "place", "pond"),
        ("where did mia go?", "place", "place", "mill"),
        ("what does mia have?", "thing", "thing", "kite"),
        ("what did tom bring?", "thing", "thing", "drum"),
        ("who is at the pond?", "name", "place", "tom"),
        ("who has the kite?", "name", "thing", "mia"),
    ],
)
def test_each_question_is_read_back_with_its_answer(text, asked, told, answer):
    question = question_from_prompt(f"{STORY}\nquestion: {text}\nanswer:")
    assert (question.asked, question.told, question.answer) == (asked, told, answer)
    assert question.reason.clause == "the moon was bright"


def test_a_prompt_reads_back_as_the_question_that_made_it():
    rng = random.Random(7)
    for _ in range(1000):
        question = ask(sample_scene(rng, "train"), rng)
        assert question_from_prompt(question.prompt) == question


def test_the_id_depends_on_the_prompt_alone():
    rng = random.Random(8)
    first, second = (ask(sample_scene(rng, "train"), rng) for _ in range(2))
    assert first.id == question_from_prompt(first.prompt).id
    assert first.id != second.id


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        STORY,
        f"{STORY}\nquestion: where is mia?",
        f"{STORY}\nquestion: when is mia?\nanswer:",
        f"{STORY}\nquestion: where is mia?\nanswer: mia is at the mill.",
        f"{STORY}\nquestion: where is zoe?\nanswer:",
        "once upon a time\nquestion: where is mia?\nanswer:",
    ],
)
def test_text_that_is_no_prompt_is_refused_in_one_line(prompt):
    with pytest.raises(ValueError, match=r"prompt=|question=|story=") as refusal:
        question_from_prompt(prompt)
    assert "\n" not in str(refusal.value)
    assert json.dumps(str(refusal.value))
