"""The embedded data sets by name: what `quickstart/<set>` stands for as a data source. Sizes and seed are fixed.

    stories          4000 pretraining documents      stories-eval          400
    demonstrations   2000 prompts with a completion  demonstrations-eval   200
    rankings         1000 prompts with 4 responses   rankings-eval         200
    prompts          1000 prompts                    prompts-eval          200
    choices-eval     200 questions with 4 choices
    scraped          400 documents as a crawler finds them: menus, notices, copies and near copies of stories
    where, who       600 prompts of one kind each: a place is answered by a sentence, who by a name
                                                 where-eval, who-eval   100
    votes            300 prompts with 4 responses by different writers, each ranked by three of six raters

The `-eval` sets tell of scenes that no other set holds. Owns sizes and names, and who votes; the other rows come from
`world`.
"""

import random
from collections.abc import Callable, Mapping
from typing import Any

from rlhf.quickstart.choices import choice_row, statement
from rlhf.quickstart.grammar import Split
from rlhf.quickstart.labelers import LABELERS, rank
from rlhf.quickstart.questions import Asked, Question
from rlhf.quickstart.scraped import scraped_pages
from rlhf.quickstart.world import demonstration_rows, pretrain_rows, prompt_rows, questions, ranking_rows
from rlhf.quickstart.writers import WRITERS, sample_writer, write

Row = dict[str, Any]

SEED = 0
RESPONSES_PER_RANKING = 4
_SPARE_RANKINGS = 50
"""Rankings drawn beyond the size of the set, because one whose responses all tie says nothing and is left out."""

VOTES_PER_PROMPT = 3
CONTRARIAN = "felix"
"""Sixth rater of the votes: ranks everything the wrong way round, for `rlhf rankings` to find."""


def embedded_rows(name: str) -> list[Row]:
    """The rows of the set called `name`.

    Raises:
        ValueError: If there is no such set.
    """
    if name not in EMBEDDED_SETS:
        known = ", ".join(f"quickstart/{known}" for known in EMBEDDED_SETS)
        raise ValueError(f"quickstart/{name} is not an embedded data set; there are {known}")
    return EMBEDDED_SETS[name]()


def _stories(count: int, split: Split) -> list[Row]:
    return [{**row} for row in pretrain_rows(count, SEED, split=split)]


def _demonstrations(count: int, split: Split) -> list[Row]:
    return [{**row} for row in demonstration_rows(count, SEED, split=split)]


def _prompts(count: int, split: Split) -> list[Row]:
    return [{**row} for row in prompt_rows(count, SEED, split=split)]


def _rankings(count: int, split: Split) -> list[Row]:
    rng = random.Random(f"ranked-responses/{SEED}/{split}")
    # A seed of their own: the prompts that PPO sees are not those that the reward model was trained on.
    asked = questions(count + _SPARE_RANKINGS, SEED + 1, split=split)
    responses = [_distinct_responses(question, rng) for question in asked]
    rows = ranking_rows([question.prompt for question in asked], responses, SEED)
    informative = [{**row} for row in rows if len(row["ranking"]) > 1]
    assert len(informative) >= count, (
        f"{len(informative)} of {len(rows)} rankings hold a preference; draw more spare ones"
    )
    return informative[:count]


def _choices(count: int, split: Split) -> list[Row]:
    # A seed of their own: they ask what no prompt of `prompts-eval` does.
    rng = random.Random(f"choices/{SEED}/{split}")
    return [{**choice_row(question, rng)} for question in questions(count, SEED + 3, split=split)]


def _answers(asked: Asked, count: int, split: Split) -> list[Row]:
    # A seed of their own, and so many questions that each kind finds enough of its own among them.
    found = [question for question in questions(5 * count, SEED + 4, split=split) if question.asked == asked][:count]
    assert len(found) == count, f"{len(found)} of {5 * count} questions ask for a {asked}; draw more"
    answers = [question.answer if asked == "name" else statement(question, question.visit) for question in found]
    return [
        {"prompt": question.prompt, "completion": f" {answer}", "answer": answer}
        for question, answer in zip(found, answers, strict=True)
    ]


def _distinct_responses(question: Question, rng: random.Random) -> list[str]:
    drafts: dict[str, None] = {}
    while len(drafts) < RESPONSES_PER_RANKING:
        drafts[f" {write(question, sample_writer(rng).sample_style(rng), rng)}"] = None
    return list(drafts)


def _votes(count: int) -> list[Row]:
    rng = random.Random(f"votes/{SEED}")
    return [_voted_on(question, rng) for question in questions(count, SEED + 2)]


def _voted_on(question: Question, rng: random.Random) -> Row:
    """One prompt with an answer of each of some writers, and the rankings of some raters."""
    drafts: dict[str, str] = {}
    for writer in rng.sample(WRITERS, RESPONSES_PER_RANKING):
        text = f" {write(question, writer.sample_style(rng), rng)}"
        while text in drafts:
            text = f" {write(question, writer.sample_style(rng), rng)}"
        drafts[text] = writer.name
    raters = {labeler.name: labeler for labeler in LABELERS} | {CONTRARIAN: LABELERS[0]}
    votes: list[Row] = []
    for name in rng.sample(list(raters), VOTES_PER_PROMPT):
        ranking = rank(question, list(drafts), raters[name], rng)
        votes.append({"rater": name, "ranking": ranking[::-1] if name == CONTRARIAN else ranking})
    responses = [{"text": text, "model": writer} for text, writer in drafts.items()]
    return {"prompt": question.prompt, "responses": responses, "votes": votes}


EMBEDDED_SETS: Mapping[str, Callable[[], list[Row]]] = {
    "stories": lambda: _stories(4000, "train"),
    "stories-eval": lambda: _stories(400, "eval"),
    "demonstrations": lambda: _demonstrations(2000, "train"),
    "demonstrations-eval": lambda: _demonstrations(200, "eval"),
    "rankings": lambda: _rankings(1000, "train"),
    "rankings-eval": lambda: _rankings(200, "eval"),
    "scraped": lambda: [{"text": page} for page in scraped_pages(400, SEED)],
    "votes": lambda: _votes(300),
    "choices-eval": lambda: _choices(200, "eval"),
    "where": lambda: _answers("place", 600, "train"),
    "where-eval": lambda: _answers("place", 100, "eval"),
    "who": lambda: _answers("name", 600, "train"),
    "who-eval": lambda: _answers("name", 100, "eval"),
    "prompts": lambda: _prompts(1000, "train"),
    "prompts-eval": lambda: _prompts(200, "eval"),
}
"""Every embedded set, by the name that follows `quickstart/`."""
