"""`make reference`: the runs whose curves the README shows, three seeds each, on two cores in under half an hour.

Each part is a handful of `rlhf` commands in folders of their own, and ends in a small JSON file; a part whose file is
there is not run again, and a part that was stopped goes on where it was. At the end the pictures are drawn from what is
there, and the numbers are printed beside the stored ones (results/reference).
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from rlhf.runtime.environment import describe_environment
from rlhf.runtime.json_lines import write_atomically
from rlhf.runtime.run_folder import RunFiles
from tests.benchmarks.reference_curves import curves_of, rounded
from tests.benchmarks.reference_pictures import draw_pictures
from tests.benchmarks.reference_summary import comparison_lines, read_parts

ROOT = Path(__file__).resolve().parents[2]
STORED = Path(__file__).parent / "results" / "reference"
WORLD_CURVES = {
    "proxy": "reward/proxy",
    "gold": "reward/gold",
    "kl": "objective/kl",
    "length": "rollout/response_length_mean",
    "perplexity": "eval/pretrain_perplexity",
}
SENTIMENT_CURVES = WORLD_CURVES | {"proxy": "reward/sentiment", "gold": "reward/judge"}
LONG_STEPS = 50
SENTIMENT_DATA = ROOT.parent / "shared" / "data" / "stories260k"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a reference is made.

    Attributes:
        runs: Run folders, one folder a part.
        results: The parts' JSON files and the pictures.
    """

    runs: Path
    results: Path

    def result(self, part: str) -> Path:
        """The file that says that a part is done."""
        return self.results / f"{part}.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3, help="how many seeds of each part")
    parser.add_argument("--only", choices=("world", "sentiment"), help="one kind of part instead of both")
    parser.add_argument("--processes", type=int, default=2, help="parts at the same time, with one thread each")
    parser.add_argument("--runs", type=Path, default=Path("runs/reference"), help="where the runs lie")
    parser.add_argument("--output", type=Path, help="where results go; default: the folder of the runs")
    options = parser.parse_args()
    place = Place(options.runs.resolve(), (options.output or options.runs).resolve())
    place.results.mkdir(parents=True, exist_ok=True)
    seeds = range(options.seeds)
    jobs = [] if options.only == "sentiment" else [(_world, f"world-{seed}", seed) for seed in seeds]
    if options.only != "world":
        if not SENTIMENT_DATA.is_dir():
            sys.exit(f"error: {SENTIMENT_DATA} is missing; `--only world` needs no data from outside")
        if any(not place.result(f"sentiment-{seed}").exists() for seed in seeds):
            _sentiment_judge(place)
        jobs += [(_sentiment, f"sentiment-{seed}", seed) for seed in seeds]
    with ThreadPoolExecutor(options.processes) as pool:
        list(pool.map(lambda job: _part(place, *job), jobs))
    draw_pictures(read_parts(place.results), place.results)
    sys.stdout.write("\n".join(comparison_lines(read_parts(place.results), read_parts(STORED))) + "\n")


def _part(place: Place, measure: Any, name: str, seed: int) -> None:
    """Runs a part that is not there yet, and writes its file."""
    if place.result(name).exists():
        return
    start = time.perf_counter()
    measured = measure(place, seed)
    record = {"seed": seed, "seconds": round(time.perf_counter() - start), **measured, "machine": _machine()}
    write_atomically(place.result(name), json.dumps(rounded(record), indent=1) + "\n")
    sys.stdout.write(f"{name}: {record['seconds']} s\n")
    sys.stdout.flush()


def _world(place: Place, seed: int) -> dict[str, Any]:
    """The quickstart, a long PPO run with a weak penalty from the same start, and best-of-n of that start."""
    folder = place.runs / f"world-{seed}"
    quickstart = folder / "quickstart"
    resume = ["--resume"] if RunFiles(quickstart).holds_run() else []
    if not RunFiles(quickstart).read_summary():
        _rlhf("quickstart", f"run_dir={quickstart}", f"seed={seed}", "tracking.wandb=off", *resume)
    _stage("ppo", folder / "ppo-long", _long_ppo(quickstart, folder / "ppo-long"))
    _stage("eval", folder / "eval", _world_eval(quickstart, folder))
    runs = {"ppo": quickstart / "ppo", "ppo_ptx": quickstart / "ppo_ptx", "ppo_long": folder / "ppo-long"}
    summary, evaluation = (RunFiles(path).read_summary() for path in (quickstart, folder / "eval"))
    return {
        "outcome": {name: summary[name] for name in ("sft", "ppo", "ppo_ptx")},
        "curves": {name: curves_of(RunFiles(path).read_metrics(), WORLD_CURVES) for name, path in runs.items()},
        **_of_evaluation(evaluation),
    }


def _sentiment(place: Place, seed: int) -> dict[str, Any]:
    """PPO towards positive stories, and the policy on openings that it has not seen."""
    ppo, evaluation = (place.runs / f"sentiment-{seed}" / name for name in ("ppo", "eval"))
    settings = _config("configs/ppo/stories260k-sentiment.yaml")
    _stage(
        "ppo", ppo, settings | {"seed": seed, "placement": {"kind": "in_process"}} | _sentiment_paths(place, settings)
    )
    settings = _config("configs/eval/stories260k-sentiment.yaml")
    settings["model"]["path"] = str(ppo / "model")
    _stage("eval", evaluation, settings | {"seed": seed} | _sentiment_paths(place, settings))
    return {
        "curves": {"ppo": curves_of(RunFiles(ppo).read_metrics(), SENTIMENT_CURVES)},
        **_of_evaluation(RunFiles(evaluation).read_summary()),
    }


def _sentiment_judge(place: Place) -> None:
    """What all seeds share: stories of the untrained policy, and one reward model."""
    stories, judge = place.runs / "sentiment" / "stories", place.runs / "sentiment" / "reward"
    if not RunFiles(stories).holds_run():
        _stage("generate", stories, _config("configs/generate/stories260k.yaml"))
    _stage("reward", judge, _config("configs/reward/stories260k-sentiment.yaml"))


def _sentiment_paths(place: Place, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that name what `_sentiment_judge` has made."""
    shared = place.runs / "sentiment"
    data = dict(settings["data"]) | {"pretrain_eval": f"{shared / 'stories' / 'answers.jsonl'}[90%:]"}
    reward = [
        source | ({"path": str(shared / "reward" / "model")} if source["kind"] == "model" else {})
        for source in settings["reward"]
    ]
    return {"data": data, "reward": reward}


def _long_ppo(quickstart: Path, run_dir: Path) -> dict[str, Any]:
    """The quickstart's PPO for more steps and with a fixed, weak penalty: far enough to see gold fall."""
    settings = _config(quickstart / "ppo" / "config.yaml")
    settings |= {"run_dir": str(run_dir), "steps": LONG_STEPS, "placement": {"kind": "in_process"}, "sample_prompts": 0}
    settings["algorithm"]["kl"] = {"kind": "fixed", "coefficient": 0.02}
    return settings


def _world_eval(quickstart: Path, folder: Path) -> dict[str, Any]:
    """PPO against its start, with PPO-ptx and the long run beside it, and best-of-n of the start."""
    settings = _config(quickstart / "ppo" / "config.yaml")
    proxy, gold = settings["reward"]
    data = settings["data"]
    return {
        "seed": settings["seed"],
        "model": {"path": str(quickstart / "ppo" / "model")},
        "baseline": {"path": str(quickstart / "sft" / "model")},
        "models": [{"path": str(path / "model")} for path in (quickstart / "ppo_ptx", folder / "ppo-long")],
        "data": {
            "eval": data["eval"],
            "pretrain_eval": data["pretrain_eval"],
            "tasks": ["quickstart/choices-eval[:200]"],
        },
        "reward": [gold | {"weight": 1.0}, proxy | {"weight": 0.0}],
        "proxy": "proxy",
        "best_of_n": {"n": [1, 2, 4, 8, 16, 32, 64], "samples": 64},
        "tasks": {"shots": [0, 1], "template": "{question}\nanswer:"},
        "sampling": settings["rollout"]["sampling"],
        "max_prompt_tokens": settings["rollout"]["max_prompt_tokens"],
    }


def _of_evaluation(summary: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept of summary.json of `rlhf eval`."""
    keys = ("candidate", "baseline", "win_rate", "win_rate_low", "win_rate_high", "gain", "gain_low", "gain_high", "kl")
    further = ("best_of_n", "gold_peaks", "tasks", "models")
    return {"evaluation": {key: summary[key] for key in (*keys, *further) if summary.get(key) is not None}}


def _stage(stage: str, run_dir: Path, settings: Mapping[str, Any]) -> None:
    """Runs a stage in `run_dir`, unless it has ended there; a training that was stopped goes on."""
    files = RunFiles(run_dir)
    if files.read_summary():
        return
    config = run_dir.with_suffix(".yaml")
    config.parent.mkdir(parents=True, exist_ok=True)
    config.write_text(yaml.safe_dump(dict(settings) | {"run_dir": str(run_dir), "tracking": {"wandb": "off"}}))
    goes_on = files.holds_run() and stage in ("ppo", "reward")
    if files.holds_run() and not goes_on:
        # Stages without checkpoints start again, in a folder of their own.
        run_dir.rename(run_dir.with_name(f"{run_dir.name}-stopped-{time.time_ns()}"))
    _rlhf(stage, str(config), *(["--resume"] if goes_on else []))


def _rlhf(*arguments: str) -> None:
    """One command with one thread; what it says is shown where it fails."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "RLHF_DEBUG": "1"}
    command = [sys.executable, "-m", "rlhf.cli", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"rlhf {' '.join(arguments)} ended with {done.returncode}:\n{done.stderr[-4000:]}")


def _config(path: str | Path) -> dict[str, Any]:
    return yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))


def _machine() -> dict[str, Any]:
    """What the times were measured on, and which versions the numbers are of."""
    cpu = "unknown"
    lines: Sequence[str] = ()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    for line in lines:
        if line.startswith("model name"):
            cpu = line.partition(":")[2].strip()
            break
    return {"cpu": cpu, "cores": os.cpu_count(), "system": platform.system(), **describe_environment()}


if __name__ == "__main__":
    main()
