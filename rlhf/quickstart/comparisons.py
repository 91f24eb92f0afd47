"""The SFT model's answers, ranked by simulated labelers: the training data of the quickstart's reward model.

Owns the sampling of K answers to each prompt, the removal of duplicates, and the files that result. Who prefers what is
in `labelers`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from policies.config import ModelConfig
from policies.loading import load_backbone, policy_adapter
from policies.tokenization import decode
from rlhf.quickstart.recipe import MAX_PROMPT_TOKENS, RESPONSES_PER_COMPARISON, SAMPLING, Layout
from rlhf.quickstart.world import prompt_rows, ranking_rows
from rlhf.runtime.json_lines import write_objects
from rollout.engines import build_generator
from rollout.generation import repeat_prompts
from rollout.prompts import prompts_from_rows

Row = Mapping[str, Any]


def write_comparisons(layout: Layout, *, comparisons: int, held_out: int, seed: int) -> None:
    """Writes `rankings`, `rankings-eval` and `sft-answers` (demonstrations of the SFT model, for normalisation)."""
    sampler = AnswerSampler(layout.model("sft"), seed=seed)
    train = sampler.sample(prompt_rows(comparisons, seed + 1))
    write_rows(layout.data("rankings"), rank_answers(train, seed))
    write_rows(
        layout.data("rankings-eval"),
        rank_answers(sampler.sample(prompt_rows(held_out, seed + 1, split="eval")), seed + 1),
    )
    first_answers = [{"prompt": prompt, "completion": answers[0]} for prompt, answers in train.items()]
    write_rows(layout.data("sft-answers"), first_answers[:held_out])


class AnswerSampler:
    """Samples K answers to each prompt from one model."""

    def __init__(self, model_path: str, *, seed: int) -> None:
        self._backbone = load_backbone(ModelConfig(path=model_path))
        self._engine = build_generator(self._backbone, policy_adapter(self._backbone), SAMPLING)
        self._seed = seed

    def sample(self, rows: Sequence[Row]) -> dict[str, list[str]]:
        """Distinct answers by prompt text, in the order they were sampled."""
        found = prompts_from_rows(
            rows, self._backbone.tokenizer, max_prompt_tokens=MAX_PROMPT_TOKENS, source="quickstart prompts"
        )
        prompts, indices = repeat_prompts(found.prompts, RESPONSES_PER_COMPARISON)
        answers: dict[str, dict[str, None]] = {prompt.text: {} for prompt in found.prompts}
        for prompt, completion in zip(
            prompts, self._engine.generate(prompts, indices, seed=self._seed, step=0), strict=True
        ):
            text = decode(completion.token_ids, self._backbone.tokenizer)
            if text.strip():
                answers[prompt.text][text] = None
        return {prompt: list(distinct) for prompt, distinct in answers.items() if distinct}


def rank_answers(answers: Mapping[str, Sequence[str]], seed: int) -> list[Row]:
    """One labeler's ranking for each prompt with something to compare; rankings without any preference are left out."""
    comparable = {prompt: texts for prompt, texts in answers.items() if len(texts) > 1}
    rows = ranking_rows(list(comparable), list(comparable.values()), seed)
    return [row for row in rows if len(row["ranking"]) > 1]


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """A JSON Lines file, replaced in one piece."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_objects(path, [dict(row) for row in rows])
