"""The embedded data sets by name: sizes, shapes and the wall between training and held-out scenes."""

import pytest

from rlhf.quickstart.grammar import read_scene
from rlhf.quickstart.questions import question_from_prompt
from rlhf.quickstart.sets import CONTRARIAN, EMBEDDED_SETS, RESPONSES_PER_RANKING, VOTES_PER_PROMPT, embedded_rows

SIZES = {"stories": 4000, "demonstrations": 2000, "rankings": 1000, "prompts": 1000}
SIZES |= {
    "stories-eval": 400,
    "demonstrations-eval": 200,
    "rankings-eval": 200,
    "prompts-eval": 200,
    "votes": 300,
    "scraped": 400,
    "choices-eval": 200,
}
ONE_KIND = ("where", "who")
SIZES |= dict.fromkeys(ONE_KIND, 600) | {f"{name}-eval": 100 for name in ONE_KIND}


@pytest.mark.parametrize("name", EMBEDDED_SETS)
def test_a_set_has_its_documented_size_and_is_the_same_each_time(name: str) -> None:
    rows = embedded_rows(name)
    assert len(rows) == SIZES[name]
    assert rows == embedded_rows(name)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("stories", {"text"}),
        ("demonstrations", {"prompt", "completion"}),
        ("rankings", {"prompt", "responses", "ranking", "labeler"}),
        ("prompts", {"id", "prompt"}),
    ],
)
def test_rows_have_the_fields_that_the_stages_read(name: str, fields: set[str]) -> None:
    for suffix in ("", "-eval"):
        assert all(row.keys() == fields for row in embedded_rows(name + suffix))


def test_every_ranking_prefers_something_and_names_each_of_its_distinct_responses_once() -> None:
    for row in embedded_rows("rankings"):
        assert len(set(row["responses"])) == RESPONSES_PER_RANKING
        assert sorted(index for group in row["ranking"] for index in group) == list(range(RESPONSES_PER_RANKING))
        assert len(row["ranking"]) > 1


def test_held_out_prompts_tell_scenes_of_the_held_out_split_only() -> None:
    for name in ("demonstrations", "rankings", "prompts", *ONE_KIND):
        for suffix, split in (("", "train"), ("-eval", "eval")):
            stories = [question_from_prompt(row["prompt"]).story for row in embedded_rows(name + suffix)[:100]]
            assert {read_scene(story).split for story in stories} == {split}


def test_votes_are_rankings_of_answers_by_different_writers_by_different_raters() -> None:
    rows = embedded_rows("votes")
    for row in rows:
        for field in ("text", "model"):
            assert len({response[field] for response in row["responses"]}) == RESPONSES_PER_RANKING
        assert len({vote["rater"] for vote in row["votes"]}) == VOTES_PER_PROMPT
        for vote in row["votes"]:
            assert sorted(index for group in vote["ranking"] for index in group) == list(range(RESPONSES_PER_RANKING))
    raters = {vote["rater"] for row in rows for vote in row["votes"]}
    assert CONTRARIAN in raters
    assert len(raters) == 6


@pytest.mark.parametrize("name", ONE_KIND)
def test_questions_of_one_kind_are_answered_in_its_own_form(name: str) -> None:
    for row in embedded_rows(name):
        question = question_from_prompt(row["prompt"])
        name_of = question.visit.name
        assert question.text.startswith(f"{name} ")
        assert row["completion"] == f" {row['answer']}"
        assert row["answer"] == (name_of if name == "who" else f"{name_of} is at the {question.visit.place}")
