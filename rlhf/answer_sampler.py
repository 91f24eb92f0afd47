"""Several distinct answers to each prompt from one model: what is ranked.

Owns the sampling of K answers and the removal of duplicates. Who ranks them is the caller's business.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from policies.config import ModelConfig
from policies.loading import load_backbone, policy_adapter
from policies.tokenization import decode, render_prompt
from rollout.config import SamplingConfig
from rollout.engines import build_generator
from rollout.generation import repeat_prompts
from rollout.prompts import prompts_from_rows

Row = Mapping[str, Any]


class AnswerSampler:
    """Samples K answers to each prompt from one model.

    Args:
        model: The model.
        sampling: How tokens are drawn.
        responses: K.
        max_prompt_tokens: A longer prompt is a bad row.
        seed: Seed of the noise.
    """

    def __init__(
        self, model: ModelConfig, *, sampling: SamplingConfig, responses: int, max_prompt_tokens: int, seed: int
    ) -> None:
        self._backbone = load_backbone(model)
        self._engine = build_generator(self._backbone, policy_adapter(self._backbone), sampling)
        self._responses, self._max_prompt_tokens, self._seed = responses, max_prompt_tokens, seed
        self._chat_template = model.chat_template

    def text_of(self, row: Row) -> str:
        """The text by which `sample` names the prompt of a row."""
        return render_prompt(row["prompt"], self._backbone.tokenizer, chat_template=self._chat_template)

    def sample(self, rows: Sequence[Row], *, source: str) -> dict[str, list[str]]:
        """Distinct answers by prompt text, in the order they were sampled; prompts without any are left out.

        Raises:
            ValueError: a bad row, named after `source`.
        """
        found = prompts_from_rows(
            rows,
            self._backbone.tokenizer,
            max_prompt_tokens=self._max_prompt_tokens,
            source=source,
            chat_template=self._chat_template,
        )
        prompts, indices = repeat_prompts(found.prompts, self._responses)
        answers: dict[str, dict[str, None]] = {prompt.text: {} for prompt in found.prompts}
        for prompt, completion in zip(
            prompts, self._engine.generate(prompts, indices, seed=self._seed, step=0), strict=True
        ):
            text = decode(completion.token_ids, self._backbone.tokenizer)
            if text.strip():
                answers[prompt.text][text] = None
        return {prompt: list(distinct) for prompt, distinct in answers.items() if distinct}
