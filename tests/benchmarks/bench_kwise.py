"""`make bench-kwise`: a ranking as one comparison of K answers, against the same ranking as K-choose-2 separate pairs.

Same model, pairs, pairs per step, steps and learning rate; what differs is that the K-wise side reads each answer once
a pass, and that the pairs of a ranking meet the optimizer together. Writes results/kwise_vs_pairs.json: held-out pair
accuracy and training seconds of each seed.
"""

import gzip
import json
import os
import statistics
import sys
import tempfile
from argparse import ArgumentParser, Namespace
from itertools import combinations
from pathlib import Path
from typing import Any

import torch

from rlhf.config import RewardConfig
from rlhf.config_loading.loader import load_config
from rlhf.runtime.environment import describe_environment
from rlhf.runtime.run_folder import RunFiles
from rlhf.trainers.reward import run

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).parent / "results" / "kwise_vs_pairs.json"
RECIPE = ROOT / "configs/reward/alpaca-eval-kwise.yaml"
FIELDS = ("accuracy", "accuracy_low", "accuracy_high", "loss")


def main() -> int:
    """Trains both sides with each seed, writes and prints; 2 where the data is missing."""
    options = _options()
    torch.set_num_threads(options.threads)
    os.chdir(ROOT)  # The recipe's paths start there.
    recipe = load_config(RewardConfig, RECIPE)
    source = Path(recipe.data.train)
    if not source.exists():
        sys.stderr.write(f"error: no data at {source.resolve()}; the comparison reads it from there\n")
        return 2
    with tempfile.TemporaryDirectory() as folder:
        rows = _short_rows(source, options)
        train = {"kwise": Path(folder) / "kwise.jsonl", "pairs": Path(folder) / "pairs.jsonl"}
        pairs = [pair for row in rows for pair in _pairs_of(row)]
        for side, written in (("kwise", rows), ("pairs", pairs)):
            train[side].write_text("".join(json.dumps(row) + "\n" for row in written), encoding="utf-8")
        per_step = {
            "kwise": options.prompts_per_step,
            "pairs": round(options.prompts_per_step * len(pairs) / len(rows)),
        }
        runs = [
            {"side": side, "seed": seed} | _train(side, seed, train[side], per_step[side], Path(folder), options)
            for seed in range(options.seeds)
            for side in train
        ]
    _write(runs, options, prompts=len(rows), pairs=len(pairs))
    return 0


def _train(
    side: str, seed: int, data: Path, per_step: int, folder: Path, options: Namespace
) -> dict[str, float | int | None]:
    overrides = [
        f"run_dir={folder}/{side}-{seed}",
        f"seed={seed}",
        f"data.train={data}",
        f"epochs={options.epochs}",
        f"comparisons_per_step={per_step}",
        "eval_every_steps=1000000",
        "checkpoint.every_steps=1000000",
        "tracking.wandb=off",
    ]
    config = load_config(RewardConfig, RECIPE, overrides)
    run(config, resume=False)
    files = RunFiles(config.run_dir)
    summary: Any = files.read_summary()
    seconds = sum(float(str(row["time/update"])) for row in files.read_metrics())
    found = {name: summary[name] for name in FIELDS} | {"steps": summary["steps"], "training_seconds": seconds}
    sys.stdout.write(f"seed {seed}, {side}: accuracy {found['accuracy']:.3f} in {seconds:.0f} s\n")
    sys.stdout.flush()
    return found


def _short_rows(source: Path, options: Namespace) -> list[dict[str, Any]]:
    """The first rows with short answers alone: both sides read them whole, and the comparison takes minutes."""
    rows = map(json.loads, gzip.decompress(source.read_bytes()).decode().splitlines())
    short = [row for row in rows if max(len(r["text"]) for r in row["responses"]) <= options.answer_characters]
    return [{name: row[name] for name in ("prompt", "responses", "ranking")} for row in short[: options.prompts]]


def _pairs_of(row: dict[str, Any]) -> list[dict[str, Any]]:
    """Every pair of a ranking that is not a tie, as a ranking of two."""
    return [
        {"prompt": row["prompt"], "responses": [row["responses"][winner], row["responses"][loser]], "ranking": [0, 1]}
        for better, worse in combinations(row["ranking"], 2)
        for winner in better
        for loser in worse
    ]


def _write(runs: list[dict[str, Any]], options: Namespace, *, prompts: int, pairs: int) -> None:
    sides = {side: [found for found in runs if found["side"] == side] for side in ("kwise", "pairs")}
    seconds, accuracy = (
        {side: statistics.mean(found[field] for found in side_runs) for side, side_runs in sides.items()}
        for field in ("training_seconds", "accuracy")
    )
    result = {
        "settings": {"prompts": prompts, "pairs": pairs, "epochs": options.epochs, "threads": options.threads},
        "accuracy": accuracy,
        "training_seconds": seconds,
        "ratio_training_seconds": seconds["kwise"] / seconds["pairs"],
        "runs": runs,
        **describe_environment(),
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    sys.stdout.write(
        f"K-wise {accuracy['kwise']:.3f}, pairs {accuracy['pairs']:.3f}, in {result['ratio_training_seconds']:.2f} of "
        f"the time; wrote {options.output}\n"
    )


def _options() -> Namespace:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--prompts", type=int, default=150, help="rankings to train on, at most")
    parser.add_argument("--answer-characters", type=int, default=400, help="of the longest answer, at most")
    parser.add_argument("--prompts-per-step", type=int, default=4)
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
