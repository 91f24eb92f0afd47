"""The quickstart world's data sets: the rows each stage reads, in TRL's conventions, and the gold reward function.

    pretrain_rows        {"text"}                                        lessons, tales, songs and gossip
    demonstration_rows   {"prompt", "completion"}                        the six writers
    prompt_rows          {"id", "prompt"}                                what PPO and evaluation answer
    ranking_rows         {"prompt", "responses", "ranking", "labeler"}   the labelers; best first, ties in one group

All but the last are functions of (count, seed, split). The "train" and "eval" splits share no text whatever the seeds,
because every text states the facts that decide its split (`grammar.Scene.split`). A completion starts with the space
that separates it from its prompt. Nothing here imports more than the standard library.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

from rlhf.quickstart.documents import sample_document
from rlhf.quickstart.gold import gold_components, gold_reward, gold_reward_from_text, gold_scores
from rlhf.quickstart.grammar import Split, sample_scene
from rlhf.quickstart.labelers import LABELERS, rank
from rlhf.quickstart.questions import Question, ask, question_from_prompt
from rlhf.quickstart.writers import Writer, sample_writer, write

__all__ = [
    "Demonstration",
    "Question",
    "Split",
    "demonstration_rows",
    "demonstrations",
    "gold_components",
    "gold_reward",
    "gold_reward_from_text",
    "gold_scores",
    "pretrain_rows",
    "prompt_rows",
    "question_from_prompt",
    "questions",
    "ranking_rows",
    "stories",
]


class PretrainRow(TypedDict):
    """One pretraining document."""

    text: str


class DemonstrationRow(TypedDict):
    """One demonstration; the completion starts with a space."""

    prompt: str
    completion: str


class PromptRow(TypedDict):
    """One prompt and its id, which depends on the prompt's text alone."""

    id: str
    prompt: str


class RankingRow(TypedDict):
    """One labeler's ranking of K responses: groups of indices, best first, ties in one group."""

    prompt: str
    responses: list[str]
    ranking: list[list[int]]
    labeler: str


@dataclass(frozen=True, slots=True)
class Demonstration:
    """A question, the answer one writer gave (no leading space) and who that was."""

    question: Question
    response: str
    writer: Writer


def stories(count: int, seed: int, *, split: Split = "train") -> list[str]:
    """`count` pretraining documents."""
    rng = _stream("stories", seed, split)
    return [sample_document(rng, split) for _ in range(count)]


def questions(count: int, seed: int, *, split: Split = "train") -> list[Question]:
    """`count` questions, each about a story of its own."""
    rng = _stream("questions", seed, split)
    return [ask(sample_scene(rng, split), rng) for _ in range(count)]


def demonstrations(count: int, seed: int, *, split: Split = "train") -> list[Demonstration]:
    """`count` questions, each answered by one writer of the mixture."""
    rng = _stream("demonstrations", seed, split)
    return [_demonstrate(ask(sample_scene(rng, split), rng), rng) for _ in range(count)]


def pretrain_rows(count: int, seed: int, *, split: Split = "train") -> list[PretrainRow]:
    """`stories` as rows."""
    return [{"text": text} for text in stories(count, seed, split=split)]


def demonstration_rows(count: int, seed: int, *, split: Split = "train") -> list[DemonstrationRow]:
    """`demonstrations` as rows."""
    return [
        {"prompt": item.question.prompt, "completion": f" {item.response}"}
        for item in demonstrations(count, seed, split=split)
    ]


def prompt_rows(count: int, seed: int, *, split: Split = "train") -> list[PromptRow]:
    """`questions` as rows."""
    return [{"id": question.id, "prompt": question.prompt} for question in questions(count, seed, split=split)]


def ranking_rows(prompts: Sequence[str], responses: Sequence[Sequence[str]], seed: int) -> list[RankingRow]:
    """Have each prompt's responses ranked by one labeler, chosen evenly.

    Args:
        prompts: N prompts of this world.
        responses: For each prompt, the K sampled responses (K may differ).
        seed: Decides the labelers and their noise.

    Raises:
        ValueError: If the lengths differ, a prompt is not of this world, or a prompt has no response.
    """
    if len(prompts) != len(responses):
        raise ValueError(
            f"prompts has {len(prompts)} items and responses {len(responses)}: give each prompt one list of responses"
        )
    rng = random.Random(f"rankings/{seed}")
    rows: list[RankingRow] = []
    for prompt, answers in zip(prompts, responses, strict=True):
        labeler = rng.choice(LABELERS)
        ranking = rank(question_from_prompt(prompt), answers, labeler, rng)
        rows.append({"prompt": prompt, "responses": list(answers), "ranking": ranking, "labeler": labeler.name})
    return rows


def _demonstrate(question: Question, rng: random.Random) -> Demonstration:
    writer = sample_writer(rng)
    return Demonstration(question=question, response=write(question, writer.sample_style(rng), rng), writer=writer)


def _stream(purpose: str, seed: int, split: Split) -> random.Random:
    """An independent random stream for each (purpose, seed, split)."""
    return random.Random(f"{purpose}/{seed}/{split}")
