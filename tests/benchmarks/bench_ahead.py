"""`python -m tests.benchmarks.bench_ahead`: samples per second of PPO that alternates, and of PPO that runs ahead

The same run on a split placement with two rollout workers, for several values of `rollout.max_policy_age`, in turns.
Steps before the pipeline is full do not count. What can be gained depends on the cores: with `c` of them, `w` rollout
workers and one learner, alternating keeps min(w, c) busy while it samples and one while it learns.
"""

import argparse
import json
import logging
import os
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from policies.config import ArchitectureConfig
from policies.loading import random_backbone
from rlhf.config import PpoConfig
from rlhf.runtime.cluster import ray_cluster
from rlhf.runtime.run_folder import RunFiles
from rlhf.trainers import ppo
from tests.tiny_models import build_tokenizer

RESULTS = Path(__file__).parent / "results" / "ahead.json"
WARM_UP_STEPS = 3
PROMPTS = 64
REPORTED = ("time/step", "time/rollout", "time/rollout_wait", "time/score", "time/update", "time/sync")


def main() -> None:
    """Runs every age in every round, prints the table and writes the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--ages", type=int, nargs="+", default=[0, 1], help="values of rollout.max_policy_age")
    parser.add_argument("--rounds", type=int, default=2, help="how often each runs")
    parser.add_argument("--steps", type=int, default=10, help="PPO steps of a run")
    parser.add_argument("--epochs", type=int, default=2, help="epochs of a step: how long the learner is busy")
    parser.add_argument("--output", type=Path, default=RESULTS, help="where the numbers go")
    arguments = parser.parse_args()
    logging.getLogger("rlhf").setLevel(logging.ERROR)
    runs: dict[int, list[dict[str, float]]] = {age: [] for age in arguments.ages}
    with tempfile.TemporaryDirectory() as folder, ray_cluster(None):
        _write_inputs(Path(folder))
        for number in range(arguments.rounds):
            for age, measured in runs.items():
                measured.append(_measure(Path(folder), age, number, steps=arguments.steps, epochs=arguments.epochs))
    results = {"cpus": os.cpu_count(), "rounds": arguments.rounds, "ages": _summary(runs)}
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


def _measure(folder: Path, age: int, number: int, *, steps: int, epochs: int) -> dict[str, float]:
    """Medians over the steps of one run after the pipeline is full."""
    config = PpoConfig.model_validate(
        {
            "run_dir": str(folder / f"age-{age}-{number}"),
            "model": {"path": str(folder / "model"), "tuning": {"kind": "lora", "rank": 8}, "device": "cpu"},
            "data": {"train": str(folder / "prompts.jsonl")},
            "reward": [{"kind": "length", "maximum_words": 8}],
            "rollout": {
                "prompts_per_step": PROMPTS,
                "sampling": {"max_response_tokens": 48},
                "max_policy_age": age,
            },
            "algorithm": {"epochs": epochs, "importance_cap": 2.0},
            "steps": steps,
            "sample_prompts": 0,
            "checkpoint": {"every_steps": steps},
            "placement": {"kind": "split", "rollout": {"workers": 2}},
            "tracking": {"wandb": "off"},
        }
    )
    ppo.run(config, resume=False)
    rows: list[dict[str, Any]] = [dict(row) for row in RunFiles(config.run_dir).read_metrics()][WARM_UP_STEPS:]
    columns = {key: median(float(row[key]) for row in rows) for key in REPORTED}
    return columns | {"samples_per_s": len(rows) * PROMPTS / sum(float(row["time/step"]) for row in rows)}


def _summary(runs: dict[int, list[dict[str, float]]]) -> dict[str, Any]:
    alternating = runs.get(0)
    summary: dict[str, Any] = {}
    for age, measured in runs.items():
        numbers = {key: median(run[key] for run in measured) for key in measured[0]}
        if alternating is not None:
            pairs = zip(measured, alternating, strict=True)
            numbers["ratio"] = median(run["samples_per_s"] / base["samples_per_s"] for run, base in pairs)
        summary[str(age)] = numbers
    return summary


def _print(results: dict[str, Any], output: Path) -> None:
    columns = ("samples_per_s", "ratio", *REPORTED)
    print(f"{'age':>4}" + "".join(f"{column.removeprefix('time/'):>15}" for column in columns))  # noqa: T201 - a report
    for age, numbers in results["ages"].items():
        values = "".join(f"{numbers.get(column, float('nan')):>15.3f}" for column in columns)
        print(f"{age:>4}{values}")  # noqa: T201 - a report
    print(f"{results['cpus']} CPUs, {results['rounds']} rounds; written to {output}")  # noqa: T201 - a report


if __name__ == "__main__":
    main()
