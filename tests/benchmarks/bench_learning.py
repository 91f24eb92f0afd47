"""`python -m tests.benchmarks.bench_learning RUN`: what PPO learns by the step, ours and TRL 1.12's, as curves.

Both start from the SFT and reward model of a quickstart run, on the same prompts, with the same hyper-parameters and a
fixed KL coefficient, LoRA of rank 16. TRL's value model is a full copy of the reward model; ours is an adapter that
starts from it. Each side runs every seed; TRL at two learning rates, of which the better one counts, because one rate
serves its policy and its value model. Writes results/learning_vs_trl.json and a picture beside it, and run folders for
`rlhf report`.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import yaml

from rlhf.runtime.environment import describe_environment
from rlhf.runtime.json_lines import read_objects
from tests.benchmarks.bench_ppo import PEER_LIBRARY
from tests.benchmarks.reference_pictures import draw_learning

RESULTS = Path(__file__).parent / "results" / "learning_vs_trl.json"
CURVES = ("objective/scores", "objective/kl")
RATES = (1e-3, 3e-4)
LAST = 4
"""Steps at the end that are averaged where one number stands for a curve."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("quickstart", type=Path, help="folder of a finished quickstart run")
    parser.add_argument("runs", type=Path, help="new folder for the runs of both sides")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=14)
    parser.add_argument("--library", type=Path, default=PEER_LIBRARY, help="folder with TRL 1.12.0")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    options.runs.mkdir(parents=True)
    sides: dict[str, list[dict[str, list[float]]]] = {}
    for seed in range(options.seeds):
        for rate in RATES:
            sides.setdefault(f"trl_{rate:g}", []).append(_curves(options, "trl", seed, rate))
        sides.setdefault("ours", []).append(_curves(options, "ours", seed, RATES[0]))
    result = {"sides": {name: _summary(curves) for name, curves in sides.items()}, **describe_environment()}
    options.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    draw_learning(result["sides"], options.output.with_suffix(".png"))
    for name, side in result["sides"].items():
        sys.stdout.write(f"{name}: scores {side['scores']:.2f} at {side['kl']:.2f} nats\n")


def _curves(options: argparse.Namespace, side: str, seed: int, rate: float) -> dict[str, list[float]]:
    run_dir = options.runs.resolve() / f"{side}-{rate:g}-seed-{seed}"
    config = Path(f"{run_dir}.yaml")
    config.write_text(yaml.safe_dump(_settings(options, run_dir, seed, rate)), encoding="utf-8")
    root = Path(__file__).resolve().parents[2]
    command = {
        "ours": ["-m", "rlhf.cli", "ppo", str(config)],
        "trl": ["-m", "tests.benchmarks.learning_peer", "--library", str(options.library), str(config)],
    }
    offline = {"HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1", "PYTHONPATH": str(root)}
    # The paths in the configuration are relative to where the quickstart ran.
    where = options.quickstart.resolve().parents[1]
    with Path(f"{run_dir}.log").open("w", encoding="utf-8") as log:
        subprocess.run(
            [sys.executable, *command[side]], cwd=where, env=os.environ | offline, stdout=log, stderr=log, check=True
        )
    rows = read_objects(run_dir / "metrics.jsonl")
    return {name: [float(str(row[name])) for row in rows] for name in CURVES}


def _settings(options: argparse.Namespace, run_dir: Path, seed: int, rate: float) -> dict[str, Any]:
    settings = yaml.safe_load((options.quickstart / "ppo/config.yaml").read_text(encoding="utf-8"))
    settings |= {"run_dir": str(run_dir), "seed": seed, "steps": options.steps, "sample_prompts": 0}
    settings |= {"placement": {"kind": "in_process"}, "tracking": {"wandb": "off"}}
    settings["data"]["pretrain_eval"] = None
    settings["optimizer"]["learning_rate"] = settings["critic"]["optimizer"]["learning_rate"] = rate
    settings["algorithm"]["kl"] = {"kind": "fixed", "coefficient": 0.05}
    return settings


def _summary(runs: Sequence[Mapping[str, Sequence[float]]]) -> dict[str, Any]:
    ends = {name: mean(mean(run[name][-LAST:]) for run in runs) for name in CURVES}
    return {"scores": ends[CURVES[0]], "kl": ends[CURVES[1]], "runs": list(runs)}


if __name__ == "__main__":
    main()
