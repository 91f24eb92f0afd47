"""`python -m tests.benchmarks.bench_ahead`: samples per second of PPO that alternates, and of PPO that runs ahead

One run on a split placement with two rollout workers, which alternates for some steps and then runs ahead by one update
for as many, again and again, so that a busy machine troubles both alike. The first steps after each change do not
count.

What can be gained depends on what is free: where rollout workers and learner have devices of their own, a step that
takes r + u seconds (rollout, everything else) takes max(r, u); where they share cores that are all busy, nothing.
"""

import argparse
import json
import os
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from policies.config import ArchitectureConfig
from policies.loading import random_backbone
from rlhf.config import PpoConfig
from rlhf.runtime.run_folder import RunFiles
from rlhf.trainers import ppo
from tests.tiny_models import build_tokenizer

RESULTS = Path(__file__).parent / "results" / "ahead.json"
BLOCK, SKIPPED = 5, 2
PROMPTS = 64
REPORTED = ("time/step", "time/rollout", "time/rollout_wait", "time/score", "time/update", "time/sync")


class SwitchingTrainer(ppo.PpoTrainer):
    """Runs ahead in every second block of steps only, on the machinery of running ahead."""

    def _run_ahead(self) -> None:
        wanted = min(1 + runs_ahead(self._steps_done), self._config.steps - self._steps_done)
        while len(self._buffer) < wanted:
            self._start_rollout()


def runs_ahead(step: int) -> bool:
    """Whether step `step`, from 0, belongs to a block that runs ahead."""
    return step // BLOCK % 2 == 1


def main() -> None:
    """Runs, prints the table and writes the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--blocks", type=int, default=4, help="blocks of steps of each kind")
    parser.add_argument("--epochs", type=int, default=1, help="epochs of a step: how long the learner is busy")
    parser.add_argument("--output", type=Path, default=RESULTS, help="where the numbers go")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        _write_inputs(Path(folder))
        rows = _run(Path(folder), steps=2 * BLOCK * arguments.blocks, epochs=arguments.epochs)
    counted = [row for row in rows if (row["step"] - 1) % BLOCK >= SKIPPED]
    kinds = {name: [r for r in counted if runs_ahead(r["step"] - 1) == flag] for name, flag in (("0", 0), ("1", 1))}
    results = {"cpus": os.cpu_count(), "steps": len(counted), "load": os.getloadavg()[1]}
    results["ages"] = {age: _summary(rows) for age, rows in kinds.items()}
    results["ratio"] = results["ages"]["1"]["samples_per_s"] / results["ages"]["0"]["samples_per_s"]
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    _print(results, arguments.output)


def _write_inputs(folder: Path) -> None:
    tokenizer = build_tokenizer()
    shape = ArchitectureConfig(hidden_size=128, layers=4, heads=4, intermediate_size=384, context_tokens=128)
    backbone = random_backbone(shape, tokenizer, seed=0)
    backbone.model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    rows = [{"prompt": f"the small cat number {number} sat on the warm mat and"} for number in range(PROMPTS)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _run(folder: Path, *, steps: int, epochs: int) -> list[dict[str, Any]]:
    config = PpoConfig.model_validate(
        {
            "run_dir": str(folder / "run"),
            "model": {"path": str(folder / "model"), "tuning": {"kind": "lora", "rank": 8}, "device": "cpu"},
            "data": {"train": str(folder / "prompts.jsonl")},
            "reward": [{"kind": "length", "maximum_words": 8}],
            "rollout": {"prompts_per_step": PROMPTS, "sampling": {"max_response_tokens": 64}, "max_policy_age": 1},
            "algorithm": {"epochs": epochs, "importance_cap": 2.0},
            "steps": steps,
            "sample_prompts": 0,
            "checkpoint": {"every_steps": steps},
            "placement": {"kind": "split", "rollout": {"workers": 2}},
            "tracking": {"wandb": "off"},
        }
    )
    trainer, ppo.PpoTrainer = ppo.PpoTrainer, SwitchingTrainer
    try:
        ppo.run(config, resume=False)
    finally:
        ppo.PpoTrainer = trainer
    return [dict(row) for row in RunFiles(config.run_dir).read_metrics()]


def _summary(rows: list[dict[str, Any]]) -> dict[str, float]:
    numbers = {key: median(float(row[key]) for row in rows) for key in REPORTED}
    return {"samples_per_s": PROMPTS / numbers["time/step"]} | numbers


def _print(results: dict[str, Any], output: Path) -> None:
    columns = ("samples_per_s", *REPORTED)
    print(f"{'age':>4}" + "".join(f"{column.removeprefix('time/'):>15}" for column in columns))  # noqa: T201 - a report
    for age, numbers in results["ages"].items():
        print(f"{age:>4}" + "".join(f"{numbers[column]:>15.3f}" for column in columns))  # noqa: T201 - a report
    ending = f"{results['cpus']} CPUs, load {results['load']:.1f}; written to {output}"
    print(f"samples/s ratio {results['ratio']:.2f}; {ending}")  # noqa: T201 - a report


if __name__ == "__main__":
    main()
