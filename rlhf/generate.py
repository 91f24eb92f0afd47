"""`rlhf generate` and `rlhf chat`: look at what a model answers.

Owns the two stages: answers to a file of prompts, and a conversation in the terminal. Sampling is the rollout engine's,
so what is seen here is what PPO would sample.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, Protocol

import numpy as np
from rich.console import Console
from rich.rule import Rule
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from policies.backbone import Backbone
from policies.encoder_decoder import is_encoder_decoder, load_encoder_decoder
from policies.loading import load_backbone, policy_adapter, resolve_device
from policies.tokenization import Message, decode, encode_prompt, render_prompt
from rlhf.config import ChatConfig, GenerateConfig
from rlhf.data import load_rows
from rlhf.reports.page import write_report
from rlhf.reports.training import generic_training_page
from rlhf.runtime.json_lines import write_objects
from rlhf.runtime.metrics import open_metric_logger
from rlhf.runtime.run_folder import open_run
from rlhf.text_to_text_answers import AnsweringEncoderDecoder, require_answerable
from rollout.engines import build_generator
from rollout.generation import repeat_prompts
from rollout.prompts import PromptSet, prompts_from_rows
from rollout.types import Completion, Prompt

FAREWELL, FORGET = "/exit", "/reset"
ANSWERS_FILE = "answers.jsonl"
"""Name of the answers as data: `prompt` and `completion` for sft, `text` for pretrain and PPO-ptx."""


def run(config: GenerateConfig, *, resume: bool) -> None:
    """Answers the prompts, prints the answers and leaves them in samples.jsonl and, as data, in answers.jsonl.

    Raises:
        ValueError: what the user can fix, before the run folder is made.
    """
    assert not resume, "the command line offers --resume to resumable stages only"
    resolved, started = config.model_dump(mode="json"), time.perf_counter()
    tokenizer, generate = _open_model(config)
    found = _read_prompts(config, tokenizer)
    prompts, indices = repeat_prompts(found.prompts[: config.prompts], config.responses_per_prompt)
    with ExitStack() as stack:
        folder = stack.enter_context(open_run(config.run_dir, config, resume=False))
        metrics = stack.enter_context(
            open_metric_logger(folder, config.tracking, resolved, stage="generate", total_steps=1)
        )
        completions = generate(prompts, indices)
        texts = [decode(completion.token_ids, tokenizer) for completion in completions]
        numbers = _describe(completions) | {"time/step": time.perf_counter() - started}
        metrics.log(1, numbers)
        metrics.log_samples(1, _sample_rows(prompts, completions, texts))
        write_objects(folder.path / ANSWERS_FILE, _answer_rows(prompts, completions, tokenizer))
        metrics.close(
            {
                "responses": len(completions),
                "skipped_rows": len(found.skipped),
                "response_length_mean": numbers["rollout/response_length_mean"],
                "eos_rate": numbers["rollout/eos_rate"],
                "seconds": numbers["time/step"],
            }
        )
        write_report(folder.path, generic_training_page(folder.path, f"Answers of {config.model.path}"))
    _show(Console(), prompts, texts, found.skipped)


def chat(config: ChatConfig, *, resume: bool) -> None:
    r"""Talks with the user until end of input or `/exit`; `/reset` forgets the conversation.

    Without `conversational`, a line is the whole prompt, and `\n` in it stands for a line end.
    """
    assert not resume, "the command line offers --resume to resumable stages only"
    console = Console()
    session = ChatSession(load_backbone(config.model), config)
    console.print(Text(f"{config.model.path}: {FORGET} forgets the conversation, {FAREWELL} or Ctrl-D ends it", "dim"))
    converse(session, lambda: console.input("[bold]you>[/bold] "), lambda text: console.print(Text(text)))


def converse(session: "ChatSession", read: Callable[[], str], write: Callable[[str], None]) -> None:
    """The loop of `chat`: one line in, one answer out; a line that cannot be answered is explained and left out.

    Args:
        session: The conversation.
        read: Returns the next line; EOFError ends the loop.
        write: Shows an answer.
    """
    while True:
        try:
            line = read().strip()
        except EOFError:
            return
        if line == FAREWELL:
            return
        if line == FORGET:
            session.forget()
        elif line:
            try:
                write(session.answer(line))
            except ValueError as error:
                write(f"error: {error}")


class Sampler(Protocol):
    """The part of a `rollout.generation.Generator` that a chat needs."""

    def generate(
        self, prompts: Sequence[Prompt], response_indices: Sequence[int], *, seed: int, step: int
    ) -> list[Completion]:
        """One completion for each pair of prompt and response index."""
        ...


class ChatSession:
    """A conversation with one model; turns that no longer fit into its context are forgotten, oldest first.

    Args:
        backbone: The model.
        config: Sampling, template and system message.
        generator: Samples answers; None takes the rollout engine on `backbone`.
    """

    def __init__(self, backbone: Backbone, config: ChatConfig, *, generator: Sampler | None = None) -> None:
        self._backbone, self._config = backbone, config
        adapter = policy_adapter(backbone)
        self._generator = generator or build_generator(backbone, adapter, config.sampling)
        self._turns: list[Message] = []
        self._answers = 0

    def answer(self, line: str) -> str:
        """The model's answer, white space around it removed.

        Raises:
            ValueError: if the line alone does not fit into the context; the conversation stays as it was.
        """
        turns = [*self._turns, {"role": "user", "content": line}] if self._config.conversational else []
        prompt = self._prompt(line, turns)
        while len(turns) > 1 and len(prompt.token_ids) + self._response_tokens > self._backbone.context_tokens:
            turns = turns[2:]
            prompt = self._prompt(line, turns)
        (completion,) = self._generator.generate([prompt], [0], seed=self._config.seed, step=self._answers)
        text = decode(completion.token_ids, self._backbone.tokenizer).strip()
        self._answers += 1
        if self._config.conversational:
            self._turns = [*turns, {"role": "assistant", "content": text}]
        return text

    def forget(self) -> None:
        """Starts a new conversation."""
        self._turns = []

    @property
    def _response_tokens(self) -> int:
        return self._config.sampling.max_response_tokens

    def _prompt(self, line: str, turns: Sequence[Message]) -> Prompt:
        """What the model sees: the rendered conversation, or the line alone where the chat is not conversational."""
        tokenizer, system = self._backbone.tokenizer, self._config.system
        messages = [*([{"role": "system", "content": system}] if system else []), *turns]
        template = self._config.model.chat_template
        # One line is all that a terminal reads; plain prompts may need several.
        written = messages if turns else line.replace("\\n", "\n")
        text = render_prompt(written, tokenizer, chat_template=template)
        return Prompt(id=f"turn-{self._answers}", text=text, token_ids=encode_prompt(text, tokenizer))


def _open_model(
    config: GenerateConfig,
) -> tuple[PreTrainedTokenizerBase, Callable[[Sequence[Prompt], Sequence[int]], list[Completion]]]:
    """The tokenizer, and what answers prompts with response indices: a rollout engine, or an encoder-decoder."""
    if is_encoder_decoder(config.model.path):
        require_answerable(config.model, config.sampling)
        model = AnsweringEncoderDecoder(load_encoder_decoder(config.model.path, resolve_device(config.model.device)))
        return model.tokenizer, lambda prompts, indices: model.generate(
            prompts, indices, config.sampling, seed=config.seed
        )
    backbone = load_backbone(config.model)
    generator = build_generator(backbone, policy_adapter(backbone), config.sampling)
    return backbone.tokenizer, lambda prompts, indices: generator.generate(prompts, indices, seed=config.seed, step=0)


def _read_prompts(config: GenerateConfig, tokenizer: PreTrainedTokenizerBase) -> PromptSet:
    return prompts_from_rows(
        load_rows(config.data.eval, field="data.eval"),
        tokenizer,
        max_prompt_tokens=config.max_prompt_tokens,
        source=f"data.eval={config.data.eval}",
        on_bad_row=config.data.on_bad_row,
        chat_template=config.model.chat_template,
    )


def _describe(completions: Sequence[Completion]) -> dict[str, float]:
    lengths = [len(completion.token_ids) for completion in completions]
    truncated = float(np.mean([completion.is_truncated for completion in completions]))
    return {
        "rollout/response_length_mean": float(np.mean(lengths)),
        "rollout/response_length_max": float(max(lengths)),
        "rollout/eos_rate": 1.0 - truncated,
        "rollout/truncated_rate": truncated,
    }


def _sample_rows(
    prompts: Sequence[Prompt], completions: Sequence[Completion], texts: Sequence[str]
) -> list[dict[str, Any]]:
    return [
        {
            "prompt_id": prompt.id,
            "response_index": completion.response_index,
            "prompt": prompt.text,
            "response": text,
            "response_tokens": len(completion.token_ids),
            "finish_reason": completion.finish_reason,
        }
        for prompt, completion, text in zip(prompts, completions, texts, strict=True)
    ]


def _answer_rows(
    prompts: Sequence[Prompt], completions: Sequence[Completion], tokenizer: PreTrainedTokenizerBase
) -> list[dict[str, object]]:
    """`text` is decoded as a whole: many tokenizers drop the space in front of a text that is decoded by itself."""
    return [
        {
            "prompt": prompt.text,
            "completion": decode(completion.token_ids, tokenizer),
            "text": decode(np.concatenate([prompt.token_ids, completion.token_ids]), tokenizer),
        }
        for prompt, completion in zip(prompts, completions, strict=True)
    ]


def _show(console: Console, prompts: Sequence[Prompt], texts: Sequence[str], skipped: Sequence[str]) -> None:
    for line in skipped:
        console.print(Text(f"skipped {line}", "yellow"))
    shown = None
    for prompt, text in zip(prompts, texts, strict=True):
        if prompt.id != shown:
            console.print(Rule(f"prompt {prompt.id}", align="left", style="dim"))
            console.print(Text(prompt.text, "dim"))
            shown = prompt.id
        console.print(Text(text))
