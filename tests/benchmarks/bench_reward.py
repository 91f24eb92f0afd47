"""`make bench-reward`: this project's reward trainer and TRL's in turn, on the same model, data and precision.

Each side runs in a process of its own and times its optimizer steps behind a warm-up; the sides alternate, so that a
busy machine is busy for both. Writes results/reward_vs_trl.json with `ratio_pairs_per_second` and `ratio_peak_memory`
(ours / theirs): compare ratios of one run, not numbers of two. Where others use the machine too, `--clock processor
--threads 1` counts the seconds of the process instead of the wall's.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from argparse import ArgumentParser, Namespace
from dataclasses import dataclass
from pathlib import Path

import yaml

from rlhf.runtime.environment import describe_environment
from rlhf.runtime.run_folder import RunFiles
from tests.benchmarks.reward_workload import CASES, Case, write_model, write_rows

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).parent / "results" / "reward_vs_trl.json"
PEER_VARIABLE = "RLHF_TRL_REWARD_BASELINE"
PEER_SCRIPT = ROOT / "../shared/bench/trl_reward_baseline.py"
PEER_PRECISION = {"bfloat16": "amp", "float32": "fp32"}


@dataclass(frozen=True)
class Measurement:
    """One run of one side.

    Attributes:
        pairs_per_second: Of the median step behind the warm-up, by the clock that was asked for.
        peak_memory_mib: Largest resident set of the process up to the last step.
    """

    pairs_per_second: float
    peak_memory_mib: float


def main() -> int:
    """Measures, writes and prints; 2 where the peer's script is missing."""
    options = _options()
    if not options.peer.exists():
        sys.stderr.write(f"error: no script at {options.peer}; give it with --peer or {PEER_VARIABLE}\n")
        return 2
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder) / "model", options)
        cases = {case.name: _compare(case, Path(folder), options) for case in CASES if case.name in options.cases}
    settings = {name: value for name, value in vars(options).items() if name not in ("peer", "output")}
    result = {"settings": settings, "cpu": _cpu_name(), **describe_environment(), "cases": cases}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    sys.stdout.write(f"wrote {options.output}\n")
    return 0


def _compare(case: Case, folder: Path, options: Namespace) -> dict[str, object]:
    write_rows(folder / f"{case.name}.jsonl", case, options)
    ours: list[Measurement] = []
    theirs: list[Measurement] = []
    for repeat in range(options.repeats):
        theirs.append(_measure_peer(case, folder, options))
        ours.append(_measure_ours(case, folder / f"{case.name}-{repeat}", folder, options))
    speed, memory = (
        [getattr(our, field) / getattr(their, field) for our, their in zip(ours, theirs, strict=True)]
        for field in ("pairs_per_second", "peak_memory_mib")
    )
    sys.stdout.write(
        f"{case.name}: {statistics.median(speed):.2f} x the pairs per second (target {case.target}), "
        f"{statistics.median(memory):.2f} x the memory\n"
    )
    sys.stdout.flush()
    return {
        "ratio_pairs_per_second": statistics.median(speed),
        "ratio_peak_memory": statistics.median(memory),
        "target_pairs_per_second": case.target,
        "pairs_per_step": case.pairs_per_step,
        "ratios_of_repeats": speed,
        "ours": [vars(measurement) for measurement in ours],
        "theirs": [vars(measurement) for measurement in theirs],
    }


def _measure_ours(case: Case, run_dir: Path, folder: Path, options: Namespace) -> Measurement:
    """`rlhf reward`, as a user runs it."""
    steps = options.warmup + options.steps
    demonstrations = folder / "demonstrations.jsonl"
    rows = [{"prompt": "w1", "completion": f" w{index}"} for index in (2, 3)]
    demonstrations.write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    config = {
        "run_dir": str(run_dir),
        "model": {"path": str(folder / "model"), "device": "cpu"},
        "data": {
            "train": str(folder / f"{case.name}.jsonl"),
            "format": {"kind": "rankings"},
            "normalize": str(demonstrations),
        },
        "comparisons_per_step": case.prompts_per_step,
        "max_tokens": options.prompt_tokens + options.response_tokens + 1,
        "compute_dtype": options.precision,
        "optimizer": {"learning_rate": 1e-3, "schedule": "constant"},
        "checkpoint": {"every_steps": steps},
        "tracking": {"wandb": "off"},
    }
    path = folder / f"{run_dir.name}.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    _run(["rlhf.cli", "reward", str(path)], options)
    metrics = RunFiles(run_dir).read_metrics()
    seconds = [float(str(row["time/step"])) for row in metrics[options.warmup :]]
    return Measurement(
        pairs_per_second=case.pairs_per_step / statistics.median(seconds),
        peak_memory_mib=float(str(metrics[-1]["perf/peak_memory_mib"])),
    )


def _measure_peer(case: Case, folder: Path, options: Namespace) -> Measurement:
    report = folder / "peer.json"
    arguments = {
        "hidden": options.hidden,
        "layers": options.layers,
        "vocab": options.vocabulary,
        "prompt-len": options.prompt_tokens,
        "response-len": options.response_tokens,
        "batch": case.pairs_per_step,
        "steps": options.steps,
        "warmup": options.warmup,
        "k": case.responses,
        "dtype": PEER_PRECISION[options.precision],
        "threads": options.threads,
        "out": folder / "peer",
        "json": report,
    }
    flags = [part for name, value in arguments.items() for part in (f"--{name}", str(value))]
    _run([str(options.peer), *flags, *(["--varied"] if case.is_varied else [])], options)
    found = json.loads(report.read_text(encoding="utf-8"))
    return Measurement(pairs_per_second=found["pairs_per_s"], peak_memory_mib=found["peak_rss_MiB"])


def _run(arguments: list[str], options: Namespace) -> None:
    """Runs a script, or a module of ours, by the clock that was asked for."""
    if options.clock == "processor":
        command = [sys.executable, str(Path(__file__).with_name("processor_clock.py")), *arguments]
    else:
        command = [sys.executable, *([] if arguments[0].endswith(".py") else ["-m"]), *arguments]
    environment = os.environ | {
        "OMP_NUM_THREADS": str(options.threads),
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "WANDB_MODE": "offline",
    }
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command[:4])} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return "unknown"


def _options() -> Namespace:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--peer", type=Path, default=Path(os.environ.get(PEER_VARIABLE, PEER_SCRIPT)))
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--cases", nargs="+", choices=[case.name for case in CASES], default=[c.name for c in CASES])
    parser.add_argument("--precision", choices=sorted(PEER_PRECISION), default="bfloat16", help="of matrix products")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=6, help="measured optimizer steps")
    parser.add_argument("--warmup", type=int, default=2, help="optimizer steps before them")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--clock", choices=("wall", "processor"), default="wall")
    parser.add_argument("--hidden", type=int, default=384)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--vocabulary", type=int, default=4096)
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--response-tokens", type=int, default=64)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
