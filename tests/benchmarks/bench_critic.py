"""`python -m tests.benchmarks.bench_critic RUN`: PPO with each kind of critic, from the models of a quickstart run.

The kinds differ in cost: a head rides on the policy's own pass, an adapter takes a second pass over the same base, a
model is a second copy. Whether they differ in what is learned is measured here, on the embedded world, whose true
(gold) reward is known: the same steps, prompts and seeds for each. Writes results/critic.json.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import yaml

from rlhf.runtime.environment import describe_environment
from rlhf.runtime.run_folder import RunFiles

RESULTS = Path(__file__).parent / "results" / "critic.json"
KINDS = ("head", "adapter", "model")
LAST = 4
"""Steps at the end over which what was learned is averaged: 256 samples."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("quickstart", type=Path, help="folder of a finished quickstart run")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--changes", nargs="*", default=[], help="a.b=value, for every kind")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    runs: dict[str, list[dict[str, float]]] = {kind: [] for kind in options.kinds}
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(options.seeds):
            for kind in options.kinds:
                runs[kind].append(_train(options, kind, seed, Path(folder) / f"{kind}-{seed}"))
                sys.stdout.write(f"seed {seed} {kind}: {runs[kind][-1]}\n")
                sys.stdout.flush()
    result = {"kinds": {kind: _summary(rows) for kind, rows in runs.items()}, **describe_environment()}
    options.output.write_text(json.dumps(result | {"changes": options.changes}, indent=2) + "\n", encoding="utf-8")


def _train(options: argparse.Namespace, kind: str, seed: int, run_dir: Path) -> dict[str, float]:
    settings = yaml.safe_load((options.quickstart / "ppo/config.yaml").read_text(encoding="utf-8"))
    settings |= {"run_dir": str(run_dir), "seed": seed, "placement": {"kind": "in_process"}, "sample_prompts": 0}
    settings["tracking"] = {"wandb": "off"}
    settings["critic"]["kind"] = kind
    config = run_dir.with_suffix(".yaml")
    config.write_text(yaml.safe_dump(settings), encoding="utf-8")
    # The paths in the configuration are relative to where the quickstart ran.
    subprocess.run(
        [sys.executable, "-m", "rlhf.cli", "ppo", str(config), *options.changes],
        cwd=options.quickstart.resolve().parents[1],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])},
        stdout=subprocess.DEVNULL,
        check=True,
    )
    rows: list[dict[str, Any]] = RunFiles(run_dir).read_metrics()
    return {
        "gold": mean(row["reward/gold"] for row in rows[-LAST:]),
        "proxy": mean(row["reward/proxy"] for row in rows[-LAST:]),
        "kl": mean(row["objective/kl"] for row in rows[-LAST:]),
        "explained_variance": mean(row["critic/explained_var"] for row in rows[-LAST:]),
        "update_seconds": mean(row["time/update"] for row in rows[1:]),
        "step_seconds": mean(row["time/step"] for row in rows[1:]),
        "peak_memory_mib": rows[-1]["perf/peak_memory_mib"],
    }


def _summary(rows: list[dict[str, float]]) -> dict[str, Any]:
    means = {name: mean(row[name] for row in rows) for name in rows[0]}
    spread = {f"{name}_std": stdev(row[name] for row in rows) for name in ("gold", "proxy", "kl")} if rows[1:] else {}
    return means | spread | {"runs": rows}


if __name__ == "__main__":
    main()
