"""The SFT model's answers, ranked by simulated labelers: the training data of the quickstart's reward model.

Owns the files that result. Sampling is `rlhf.answer_sampler`; who prefers what is in `labelers`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from policies.config import ModelConfig
from rlhf.answer_sampler import AnswerSampler
from rlhf.quickstart.recipe import MAX_PROMPT_TOKENS, RESPONSES_PER_COMPARISON, SAMPLING, Layout
from rlhf.quickstart.world import prompt_rows, ranking_rows
from rlhf.runtime.json_lines import write_objects

Row = Mapping[str, Any]


def write_comparisons(layout: Layout, *, comparisons: int, held_out: int, seed: int) -> None:
    """Writes `rankings`, `rankings-eval` and `sft-answers` (demonstrations of the SFT model, for normalisation)."""
    sampler = AnswerSampler(
        ModelConfig(path=layout.model("sft")),
        sampling=SAMPLING,
        responses=RESPONSES_PER_COMPARISON,
        max_prompt_tokens=MAX_PROMPT_TOKENS,
        seed=seed,
    )
    train = sampler.sample(prompt_rows(comparisons, seed + 1), source="quickstart prompts")
    write_rows(layout.data("rankings"), rank_answers(train, seed))
    write_rows(
        layout.data("rankings-eval"),
        rank_answers(
            sampler.sample(prompt_rows(held_out, seed + 1, split="eval"), source="quickstart prompts"), seed + 1
        ),
    )
    first_answers = [{"prompt": prompt, "completion": answers[0]} for prompt, answers in train.items()]
    write_rows(layout.data("sft-answers"), first_answers[:held_out])


def rank_answers(answers: Mapping[str, Sequence[str]], seed: int) -> list[Row]:
    """One labeler's ranking for each prompt with something to compare; rankings without any preference are left out."""
    comparable = {prompt: texts for prompt, texts in answers.items() if len(texts) > 1}
    rows = ranking_rows(list(comparable), list(comparable.values()), seed)
    return [row for row in rows if len(row["ranking"]) > 1]


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """A JSON Lines file, replaced in one piece."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_objects(path, [dict(row) for row in rows])
