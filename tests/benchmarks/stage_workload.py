"""Runs of the stages that train by themselves, for their peak memory: a random Llama, texts of equal lengths."""

import json
from pathlib import Path
from typing import Any

from tests.benchmarks.ppo_workload import Shape, write_model

ROWS = 12
"""Enough for two steps of four examples, and some held out."""


def write_stage(folder: Path, stage: str, shape: Shape, *, tuning: str) -> dict[str, Any]:
    """Writes model, rows and `<stage>.json`, the configuration of a run of two steps; returns the configuration.

    Args:
        folder: Exists.
        stage: "pretrain", "sft", "reward" or "dpo".
        shape: The model; `prompt_tokens` and `response_tokens` are the lengths of every row.
        tuning: "full" or "lora".
    """
    model: dict[str, Any] = {"path": write_model(folder / "base", shape), "device": "cpu"}
    if stage != "pretrain":
        model["tuning"] = {"kind": "lora", "rank": 16, "alpha": 32} if tuning == "lora" else {"kind": "full"}
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps(_row(index, shape)) + "\n" for index in range(ROWS)), encoding="utf-8")
    tokens = shape.prompt_tokens + shape.response_tokens
    settings: dict[str, Any] = {
        "run_dir": str(folder / "run"),
        "model": model,
        "data": {"train": f"{rows}[:8]", "eval": f"{rows}[8:]"},
        "tracking": {"wandb": "off"},
    }
    settings |= _STAGES[stage](tokens)
    (folder / f"{stage}.json").write_text(json.dumps(settings), encoding="utf-8")
    return settings


def _words(first: int, count: int, shape: Shape) -> str:
    return " ".join(f"w{(first + 7 * place) % (shape.vocabulary - 8)}" for place in range(count))


def _row(index: int, shape: Shape) -> dict[str, str]:
    prompt, chosen, rejected = (
        _words(31 * index + offset, count, shape)
        for offset, count in ((0, shape.prompt_tokens), (3, shape.response_tokens - 1), (5, shape.response_tokens - 1))
    )
    text = f"{prompt} {chosen}"
    answers = {"completion": f" {chosen}", "chosen": f" {chosen}", "rejected": f" {rejected}"}
    return {"text": text, "prompt": prompt, **answers}


_STAGES: dict[str, Any] = {
    "pretrain": lambda tokens: {
        "packing": "documents", "sequence_tokens": tokens, "sequences_per_step": 4,
        "micro_batch_tokens": 4 * tokens, "steps": 2,
    },
    "sft": lambda tokens: {"examples_per_step": 4, "micro_batch_examples": 4, "max_tokens": tokens + 2},
    "dpo": lambda tokens: {"pairs_per_step": 4, "micro_batch_pairs": 2, "max_tokens": tokens + 2},
    "reward": lambda tokens: {"comparisons_per_step": 4, "micro_batch_tokens": 4 * tokens, "max_tokens": tokens + 2},
}  # fmt: skip
