"""The data of a PPO run: prompts, the prompts that are followed, held-out text; read once by the driver.

Owns what is refused before any role starts. The pretraining text of PPO-ptx is the learner's to read.
"""

import logging
from collections.abc import Sequence

from policies.config import virtual_tokens_of
from policies.tokenization import load_tokenizer
from reward.composite import require_scales
from rlhf.config import PpoConfig
from rlhf.data import load_rows
from rlhf.roles import pretraining_texts
from rlhf.text_stream import require_texts
from rollout.prompts import prompts_from_rows
from rollout.types import Prompt

logger = logging.getLogger(__name__)


class PpoInputs:
    """The data of a run, read and tokenized by the driver once.

    Attributes:
        tokenizer: The policy's.
        prompts: Training prompts.
        sample_prompts: The fixed held-out prompts whose answers are followed through training.
        held_out_texts: Pretraining text for the alignment tax; empty without `data.pretrain_eval`.
        skipped: Bad rows that `on_bad_row=skip` left out, one line each.
    """

    def __init__(self, config: PpoConfig) -> None:
        require_scales(config.reward)
        self.tokenizer = load_tokenizer(config.model)
        self.skipped: list[str] = []
        self.prompts: Sequence[Prompt] = self._prompts(config, config.data.train, "data.train")
        self.sample_prompts: Sequence[Prompt] = []
        if config.data.eval is not None and config.sample_prompts:
            self.sample_prompts = self._prompts(config, config.data.eval, "data.eval")[: config.sample_prompts]
        self.held_out_texts: list[str] = []
        if config.data.pretrain_eval is not None:
            rows = load_rows(config.data.pretrain_eval, field="data.pretrain_eval")
            source = f"data.pretrain_eval={config.data.pretrain_eval}"
            self.held_out_texts, bad = require_texts(rows, source=source, on_bad_row=config.data.on_bad_row)
            self.skipped += bad
        # The learner reads these rows; what is wrong with them is said here, before anything starts.
        self.skipped += pretraining_texts(config.data)[1]
        for line in self.skipped:
            logger.warning("skipped %s", line)

    def require_room(self, context_tokens: int, config: PpoConfig) -> None:
        """Refuses prompts that leave no room for the longest response; with `on_bad_row=skip` leaves them out.

        Raises:
            ValueError: naming the prompt, or where none is left.
        """
        longest = context_tokens - config.rollout.sampling.max_response_tokens
        self.prompts = self._fitting(self.prompts, longest, f"data.train={config.data.train}", config)
        if self.sample_prompts:
            self.sample_prompts = self._fitting(self.sample_prompts, longest, f"data.eval={config.data.eval}", config)

    def _prompts(self, config: PpoConfig, source: str, field: str) -> list[Prompt]:
        found = prompts_from_rows(
            load_rows(source, field=field),
            self.tokenizer,
            max_prompt_tokens=config.rollout.max_prompt_tokens,
            source=f"{field}={source}",
            on_bad_row=config.data.on_bad_row,
            chat_template=config.model.chat_template,
        )
        self.skipped += found.skipped
        return found.prompts

    def _fitting(self, prompts: Sequence[Prompt], longest: int, source: str, config: PpoConfig) -> list[Prompt]:
        fitting = [prompt for prompt in prompts if len(prompt.token_ids) <= longest]
        response = f"rollout.sampling.max_response_tokens={config.rollout.sampling.max_response_tokens}"
        virtual = virtual_tokens_of(config.model.tuning)
        taken = f" and {virtual} virtual tokens" if virtual else ""
        lines = [
            f"{source}: prompt {prompt.id!r} has {len(prompt.token_ids)} tokens, at most {max(longest, 0)} leave room "
            f"in the model's context for {response}{taken}"
            for prompt in prompts
            if len(prompt.token_ids) > longest
        ]
        if lines and (config.data.on_bad_row == "error" or not fitting):
            raise ValueError(f"{lines[0]}: shorten it, lower max_response_tokens, or set data.on_bad_row=skip")
        for line in lines:
            logger.warning("skipped %s", line)
        self.skipped += lines
        return fitting
