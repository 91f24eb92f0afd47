"""`make bench-ppo`: a PPO step of ours and of TRL 1.12.0, the last with PPO, in turn on the same work.

Same random Llama, prompts, lengths, epochs, minibatches and precision; each side runs in a process of its own, and the
sides alternate, so that a busy machine is busy for both. Writes results/ppo_vs_trl.json with
`ratio_samples_per_second` and `ratio_peak_memory` (ours / TRL; all roles of ours run in the one process). A ratio is
one of medians: compare ratios of one run, not numbers of two.

`ceiling_samples_per_second` is the ratio that a step of ours would have if it took no longer than its matrix products
at the limit of this machine (`ppo_floor`): what lies between it and the measured ratio is ours to win, more is not.

In the ragged case TRL too has prompts of half to full length, but its responses are all of full length: without a stop
token it generates, scores and trains on the padded batch whatever a response's own length, so its time is the same.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import torch

from rlhf.runtime.environment import describe_environment
from tests.benchmarks.machine_limits import matmul_flops
from tests.benchmarks.ppo_floor import step_operations
from tests.benchmarks.ppo_workload import CASES, LORA_RANK, MINIBATCHES, Shape

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).parent / "results" / "ppo_vs_trl.json"
PEER_VARIABLE = "RLHF_TRL_PPO_BASELINE"
PEER_SCRIPT = ROOT / "../shared/bench/trl_ppo_baseline.py"
PEER_LIBRARY = ROOT / ".bench/trl112"
INSTALL_PEER = "pip install --no-deps --target .bench/trl112 trl==1.12.0"
WARMUP_STEPS = 1

COMPARISONS: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("lora", {"critic": {"kind": "adapter"}}),
    "full": ("full", {}),
    "lora_ragged": ("lora_ragged", {"critic": {"kind": "adapter"}}),
    "lora_head_critic": ("lora", {"critic": {"kind": "head"}}),
    "full_masters": ("full", {}),
}
"""Name -> case of the workload, and what changes in our configuration."""
PEER_DTYPES = {"full_masters": "amp"}
"""TRL in pure bfloat16 loses most updates of a weight to rounding. With float32 weights it keeps them, as we do."""
TARGETS = {"lora": 4.0, "full": 1.5, "lora_ragged": 6.0}
"""Samples per second, ours / TRL."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures every comparison, prints a line of each and writes the results."""
    options = _options(arguments)
    shape = Shape(hidden=options.hidden, layers=options.layers)
    comparisons: dict[str, Any] = {}
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        for name in options.cases:
            limit = matmul_flops(torch.bfloat16)
            rows = _rounds(name, shape, Path(folder), options)
            comparisons[name] = compared(name, rows) | ceiling(name, shape, rows, limit)
            _print(name, comparisons[name])
            _write(options, shape, comparisons)


def compared(name: str, rows: Sequence[Mapping[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """The ratios of a comparison's rounds, ours / TRL, each of medians; and the rounds themselves."""
    ratios = {
        f"ratio_{ours}": median(row["ours"][ours] for row in rows) / median(row["trl"][ours] for row in rows)
        for ours in ("samples_per_second", "peak_memory_mib")
    }
    return {
        "ratio_samples_per_second": ratios["ratio_samples_per_second"],
        "ratio_peak_memory": ratios["ratio_peak_memory_mib"],
        "target_samples_per_second": TARGETS.get(name),
        "rounds": list(rows),
    }


def ceiling(name: str, shape: Shape, rows: Sequence[Mapping[str, Any]], limit: float) -> dict[str, float]:
    """What the matrix products of our step take at `limit` operations a second, and the ratio that this would give."""
    case, changes = COMPARISONS[name]
    critic = changes.get("critic", {"kind": "model"})["kind"]
    response_tokens = median(row["ours"]["response_tokens_mean"] for row in rows)
    seconds = step_operations(shape, CASES[case], critic, response_tokens) / limit
    theirs = median(row["trl"]["samples_per_second"] for row in rows)
    return {
        "limit_gflops": limit / 1e9,
        "product_seconds": seconds,
        "ceiling_samples_per_second": shape.samples / seconds / theirs,
    }


def _rounds(name: str, shape: Shape, folder: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    case, changes = COMPARISONS[name]
    ours = folder / name
    steps = options.steps + WARMUP_STEPS
    workload = ("-m", "tests.benchmarks.ppo_workload")
    flags = ("--case", case, "--steps", str(steps), "--shape", json.dumps(asdict(shape)), "--set", json.dumps(changes))
    _run([*workload, "prepare", *flags, str(ours)], options)
    rows: list[dict[str, Any]] = []
    for _ in range(options.repeats):
        trl = _peer(name, shape, folder, options)
        _run([*workload, "run", "--threads", str(options.threads), str(ours)], options)
        rows.append({"ours": json.loads((ours / "measured.json").read_text(encoding="utf-8")), "trl": trl})
    return rows


def _peer(name: str, shape: Shape, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    case, report = CASES[COMPARISONS[name][0]], folder / "peer.json"
    settings = {
        "trl-path": options.peer_library,
        "hidden": shape.hidden,
        "layers": shape.layers,
        "vocab": shape.vocabulary,
        "prompt-len": shape.prompt_tokens,
        "response-len": shape.response_tokens,
        "batch": shape.samples,
        "ppo-epochs": shape.epochs,
        "minibatches": MINIBATCHES,
        "dtype": PEER_DTYPES.get(name, "bf16"),
        "lora": LORA_RANK if case.lora else 0,
        "iters": options.steps,
        "warmup": WARMUP_STEPS,
        "threads": options.threads,
        "out": folder / "peer",
        "json": report,
    }
    flags = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
    _run([str(options.peer), *flags, *(["--varied-prompts"] if case.ragged else [])], options)
    found = json.loads(report.read_text(encoding="utf-8"))
    return {
        "seconds": {
            "rollout": found["rollout_s"],
            "score": found["score_s"],
            "update": found["train_s"],
            "step": found["s_per_iter"],
        },
        "samples_per_second": found["samples_per_s"],
        "peak_memory_mib": found["peak_rss_MiB"],
        "optimizer_steps": found["opt_steps_per_iter"],
        "trl": found["trl"],
    }


def _run(arguments: Sequence[str], options: argparse.Namespace) -> None:
    offline = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "WANDB_MODE": "offline"}
    environment = os.environ | offline | {"OMP_NUM_THREADS": str(options.threads)}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments[:3])} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")


def _print(name: str, result: Mapping[str, Any]) -> None:
    target = result["target_samples_per_second"]
    sys.stdout.write(
        f"{name}: {result['ratio_samples_per_second']:.2f} x the samples per second"
        f" ({f'target {target}, ' if target else ''}ceiling {result['ceiling_samples_per_second']:.2f}), "
        f"{result['ratio_peak_memory']:.2f} x the memory\n"
    )
    sys.stdout.flush()


def _write(options: argparse.Namespace, shape: Shape, comparisons: Mapping[str, Any]) -> None:
    """After each comparison, so that a run that is stopped keeps what it has measured."""
    settings = {"shape": asdict(shape), "threads": options.threads, "steps": options.steps, "dtype": "bfloat16"}
    result = {"settings": settings, **describe_environment(), "comparisons": comparisons}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--peer", type=Path, default=Path(os.environ.get(PEER_VARIABLE, PEER_SCRIPT)))
    parser.add_argument("--peer-library", type=Path, default=PEER_LIBRARY, help="folder with TRL 1.12.0")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--cases", nargs="+", choices=COMPARISONS, default=list(COMPARISONS))
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--steps", type=int, default=1, help=f"measured steps, after {WARMUP_STEPS} that is not")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--hidden", type=int, default=Shape().hidden)
    parser.add_argument("--layers", type=int, default=Shape().layers)
    options = parser.parse_args(arguments)
    if not options.peer.exists():
        parser.error(f"nothing at {options.peer}; give it with --peer (or {PEER_VARIABLE})")
    if not options.peer_library.exists():
        parser.error(f"nothing at {options.peer_library}; install it with `{INSTALL_PEER}`")
    return options


if __name__ == "__main__":
    main()
