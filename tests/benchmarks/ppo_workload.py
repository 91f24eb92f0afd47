"""One side of the PPO benchmark: `rlhf ppo` on a random Llama, with as many tokens, samples and steps as TRL is given.

Run as a module by `bench_ppo`, in a process of its own, so that its peak memory is its own.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from rlhf.process_environment import prepare_environment

if __name__ == "__main__":
    # Before the libraries below read it, as the command line does.
    prepare_environment()

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from policies.config import FullTuning, LoraTuning, ModelConfig
from reward.model import RewardModel
from reward.normalization import IDENTITY
from rlhf.config import PpoConfig
from rlhf.runtime.run_folder import RunFiles
from rlhf.trainers import ppo

LORA_RANK = 16
MINIBATCHES = 4
HEAD_SIZE = 64
PHASES = ("rollout", "score", "experience", "update", "sync")


@dataclass(frozen=True, slots=True)
class Shape:
    """The model and the batch, the same for both sides.

    Attributes:
        hidden: Width of the residual stream.
        layers: Decoder layers.
        vocabulary: Tokens.
        prompt_tokens: Longest prompt.
        response_tokens: Longest response.
        samples: Prompts, and responses, of one step.
        epochs: Passes over the samples.
    """

    hidden: int = 512
    layers: int = 8
    vocabulary: int = 8192
    prompt_tokens: int = 64
    response_tokens: int = 64
    samples: int = 32
    epochs: int = 4


@dataclass(frozen=True, slots=True)
class Case:
    """What is trained, and on which lengths.

    Attributes:
        lora: LoRA of rank 16; else every weight, with a separate critic.
        ragged: Prompts of half to full length, and responses that end by themselves after half of theirs on average.
    """

    lora: bool
    ragged: bool


CASES = {
    "lora": Case(lora=True, ragged=False),
    "full": Case(lora=False, ragged=False),
    "lora_ragged": Case(lora=True, ragged=True),
}


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    actions = parser.add_subparsers(dest="action", required=True)
    prepare = actions.add_parser("prepare", help="write model, reward model, prompts and configuration")
    prepare.add_argument("--case", choices=CASES, required=True)
    prepare.add_argument("--shape", type=json.loads, default={}, help="JSON object with fields of Shape")
    prepare.add_argument("--steps", type=int, default=2)
    prepare.add_argument("--set", type=json.loads, default={}, help="JSON object: sections of the PPO configuration")
    run = actions.add_parser("run", help="train once, and write what was measured to measured.json")
    run.add_argument("--threads", type=int, required=True)
    for action in (prepare, run):
        action.add_argument("folder", type=Path)
    options = parser.parse_args(arguments)
    if options.action == "prepare":
        write_workload(options.folder, CASES[options.case], Shape(**options.shape), options.steps, options.set)
    else:
        run_workload(options.folder, threads=options.threads)


def write_workload(folder: Path, case: Case, shape: Shape, steps: int, changes: Mapping[str, Any]) -> None:
    """Apart from the run, whose memory is measured."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = _merged(ppo_settings(folder, case, shape, steps=steps), changes)
    (folder / "ppo.json").write_text(json.dumps(settings), encoding="utf-8")
    (folder / "shape.json").write_text(json.dumps(asdict(shape)), encoding="utf-8")


def run_workload(folder: Path, *, threads: int) -> None:
    torch.set_num_threads(threads)
    config = PpoConfig.model_validate(json.loads((folder / "ppo.json").read_text(encoding="utf-8")))
    shape = Shape(**json.loads((folder / "shape.json").read_text(encoding="utf-8")))
    shutil.rmtree(config.run_dir, ignore_errors=True)
    ppo.run(config, resume=False)
    result = {"shape": asdict(shape), **measured(RunFiles(config.run_dir).read_metrics(), shape)}
    (folder / "measured.json").write_text(json.dumps(result), encoding="utf-8")


def measured(rows: Sequence[Mapping[str, Any]], shape: Shape) -> dict[str, Any]:
    """Seconds of the steps after the first, which also compiles and allocates, and the peak up to the last update."""
    timed = rows[1:] or rows
    seconds = {phase: float(np.mean([row[f"time/{phase}"] for row in timed])) for phase in PHASES}
    total = float(np.mean([row["time/step"] for row in timed]))
    return {
        "seconds": seconds | {"step": total},
        "first_step_seconds": rows[0]["time/step"],
        "samples_per_second": shape.samples / total,
        "peak_memory_mib": rows[-1]["perf/peak_memory_mib"],
        "padding_waste": rows[-1]["perf/padding_waste"],
        "response_tokens_mean": float(np.mean([row["rollout/response_length_mean"] for row in timed])),
        "first_step_ratio_error": rows[-1]["policy/first_step_ratio_error"],
    }


def ppo_settings(folder: Path, case: Case, shape: Shape, *, steps: int) -> dict[str, Any]:
    """Writes model, reward model and prompts into `folder`; returns the configuration that names them."""
    base = write_model(folder / "base", shape)
    return {
        "run_dir": str(folder / "run"),
        "model": {
            "path": base,
            "dtype": "bfloat16",
            "device": "cpu",
            "tuning": {"kind": "lora", "rank": LORA_RANK, "alpha": 2 * LORA_RANK} if case.lora else {"kind": "full"},
        },
        "data": {"train": write_prompts(folder / "prompts.jsonl", shape, ragged=case.ragged, steps=steps)},
        "reward": [
            {"kind": "model", "path": write_reward_model(folder / "reward", base, case), "dtype": "bfloat16"},
        ],
        "rollout": {
            "prompts_per_step": shape.samples,
            "max_prompt_tokens": shape.prompt_tokens,
            "sampling": {"max_response_tokens": shape.response_tokens, "stop_token_ids": stop_tokens(case, shape)},
        },
        "algorithm": {
            "epochs": shape.epochs,
            "minibatches": MINIBATCHES,
            "kl": {"kind": "fixed", "coefficient": 0.05},
        },
        "steps": steps,
        "sample_prompts": 0,
        "placement": {"kind": "in_process"},
        "tracking": {"wandb": "off"},
    }


def write_model(folder: Path, shape: Shape) -> str:
    """A random Llama as TRL's side builds it, in bfloat16, and a tokenizer with one word for each token."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.hidden // HEAD_SIZE,
        intermediate_size=inner_size(shape),
        max_position_embeddings=max(512, shape.prompt_tokens + shape.response_tokens),
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=shape.vocabulary - 1,
        pad_token_id=shape.vocabulary - 2,
    )
    cast(Any, LlamaForCausalLM(config)).to(torch.bfloat16).save_pretrained(folder)
    words = {f"w{i}": i for i in range(shape.vocabulary - 2)}
    special = {"<pad>": shape.vocabulary - 2, "<eos>": shape.vocabulary - 1}
    tokenizer = Tokenizer(models.WordLevel(words | special, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>").save_pretrained(folder)
    return str(folder)


def inner_size(shape: Shape) -> int:
    """Width of the MLP, as TRL's side has it."""
    return int(8 * shape.hidden / 3 / 32 + 0.5) * 32


def write_reward_model(folder: Path, base: str, case: Case) -> str:
    """An adapter on the policy's base where the policy is one, as `rlhf reward` leaves it; else a model of its own."""
    tuning = LoraTuning(rank=LORA_RANK) if case.lora else FullTuning()
    model = RewardModel.new(ModelConfig(path=base, tuning=tuning, device="cpu"), seed=1)
    model.save(folder, normalizer=IDENTITY, metadata={})
    return str(folder)


def write_prompts(path: Path, shape: Shape, *, ragged: bool, steps: int) -> str:
    generator = np.random.default_rng(0)
    shortest = shape.prompt_tokens // 2 if ragged else shape.prompt_tokens
    lines: list[str] = []
    for _ in range(shape.samples * steps):
        count = generator.integers(shortest, shape.prompt_tokens + 1)
        words = (f"w{token}" for token in generator.integers(0, shape.vocabulary - 2, count))
        lines.append(json.dumps({"prompt": " ".join(words)}) + "\n")
    path.write_text("".join(lines), encoding="utf-8")
    return str(path)


def stop_tokens(case: Case, shape: Shape) -> list[int]:
    """Tokens that end a response: one in 8192 ends about none early; one in 0.625 R ends them after R / 2 on average.

    A random model draws every token about equally often, so lengths are geometric with rate p, cut off at R, with the
    mean (1 - (1 - p)^R) / p. At p = 1.6 / R that is R (1 - e^-1.6) / 1.6 = 0.499 R.
    """
    count = round(1.6 / shape.response_tokens * shape.vocabulary) if case.ragged else 1
    return list(range(shape.vocabulary - count, shape.vocabulary))


def _merged(settings: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`settings` with the sections of `changes` merged in."""
    result = dict(settings)
    for key, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = _merged(result[key], value) if both else value
    return result


if __name__ == "__main__":
    main(sys.argv[1:])
