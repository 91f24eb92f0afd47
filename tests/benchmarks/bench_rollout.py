"""`make bench-rollout`: our engines beside transformers' `generate` and `generate_batch`, on the same model and prompts

vLLM joins where an environment has it: `make bench-rollout ARGS="--vllm-python .venv-vllm/bin/python"`.
Every contender lives in a process of its own, so that its peak memory is its own, and keeps its engine between runs,
as training does; they take turns, so that a busy machine troubles all of them alike. Ours run with the allocator as
every process of a run has it (`rlhf.process_environment`), the others as their users do. Numbers are medians over the
rounds; ratios are taken round by round. Processor time is noted beside wall time: it says more where other programs
compute at the same time.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

from tests.benchmarks.rollout_workload import KINDS

RESULTS = Path(__file__).parent / "results" / "rollout.json"
CONTENDERS = ("compiled", "hf", "generate", "generate_batch")
VLLM = "vllm"


def main() -> None:
    """Runs the rounds, prints the table and writes the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="how often each contender runs (at least 3 count)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="torch threads of each process")
    parser.add_argument("--vllm-python", help="an interpreter with vLLM (.venv-vllm/bin/python), to time that, too")
    parser.add_argument("--output", type=Path, default=RESULTS, help="where the numbers go")
    arguments = parser.parse_args()
    pythons: dict[str, str] = dict.fromkeys(("limits", *CONTENDERS), sys.executable)
    if arguments.vllm_python is not None:
        pythons[VLLM] = arguments.vllm_python
    with ExitStack() as stack:
        workers = {
            name: stack.enter_context(_Worker(name, python, arguments.threads)) for name, python in pythons.items()
        }
        results = _race(workers, arguments.rounds)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    _print(results, arguments.output)


class _Worker:
    """A process of `rollout_worker`, and the conversation with it."""

    def __init__(self, name: str, python: str, threads: int) -> None:
        # Waiting threads are to sleep: on a busy machine those that spin hold up all others.
        environment = {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE", "TRANSFORMERS_VERBOSITY": "error"}
        self._process = subprocess.Popen(
            [python, "-W", "ignore", "-m", "tests.benchmarks.rollout_worker", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | environment,
        )
        self._name = name

    def __enter__(self) -> "_Worker":
        return self

    def __exit__(self, *_exception: object) -> None:
        self._process.communicate()

    def ask(self, kind: str) -> dict[str, Any]:
        assert self._process.stdin is not None, "opened as a pipe"
        assert self._process.stdout is not None, "opened as a pipe"
        self._process.stdin.write(f"{kind}\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the process of {self._name!r} ended; its last words are above")
        return json.loads(answer)


def _race(workers: Mapping[str, _Worker], rounds: int) -> dict[str, Any]:
    results: dict[str, Any] = {"rounds": rounds}
    for kind in KINDS:
        runs: dict[str, list[dict[str, Any]]] = {name: [] for name in workers}
        for _ in range(rounds):
            for name, worker in workers.items():
                runs[name].append(worker.ask(kind))
        limits = runs.pop("limits")
        results |= {"machine": limits[0]["machine"], kind: _summary(runs, limits)}
    return results


def _summary(runs: Mapping[str, Sequence[Mapping[str, Any]]], limits: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    flops, bandwidth = (max(round_[key] for round_ in limits) for key in ("matmul_flops", "memory_bandwidth"))
    work = limits[0]["work"]
    # Products and reads could overlap at best, so the larger of the two times bounds a run from below.
    least_seconds = max(work["flops"] / flops, work["bytes"] / bandwidth)
    return {
        "tokens": runs["compiled"][0]["tokens"],
        "limits": {"matmul_gflops": flops / 1e9, "memory_gb_per_s": bandwidth / 1e9, "least_seconds": least_seconds},
        "contenders": {name: _contender_summary(own, least_seconds) for name, own in runs.items()},
        "ratios": {
            f"compiled / {name}": {
                clock: median(
                    theirs[clock] / ours[clock] for ours, theirs in zip(runs["compiled"], runs[name], strict=True)
                )
                for clock in ("seconds", "processor_seconds")
            }
            for name in runs
            if name != "compiled"
        },
    }


def _contender_summary(runs: Sequence[Mapping[str, Any]], least_seconds: float) -> dict[str, Any]:
    seconds = median(run["seconds"] for run in runs)
    errors = [run["logprob_error"] for run in runs]
    return {
        "tokens_per_s": runs[0]["tokens"] / seconds,
        "seconds": [run["seconds"] for run in runs],
        "processor_seconds": [run["processor_seconds"] for run in runs],
        "share_of_limit": least_seconds / seconds,
        "peak_above_loaded_model_mib": max(run["peak_above_loaded_model_mib"] for run in runs),
        "logprob_error_nats": None if None in errors else max(errors),
    }


def _print(results: Mapping[str, Any], output: Path) -> None:
    for kind in KINDS:
        sys.stdout.write(f"\n{kind}: {results[kind]['tokens']} tokens\n")
        for name, own in results[kind]["contenders"].items():
            error = own["logprob_error_nats"]
            sys.stdout.write(
                f"  {name:15s}{own['tokens_per_s']:8.0f} tokens/s  {own['share_of_limit']:5.0%} of the limit  "
                f"+{own['peak_above_loaded_model_mib']:.0f} MiB"
                + ("\n" if error is None else f"  log-prob error {error:.2g} nats\n")
            )
        for name, ratio in results[kind]["ratios"].items():
            sys.stdout.write(f"  {name}: {ratio['seconds']:.2f} (processor time {ratio['processor_seconds']:.2f})\n")
    sys.stdout.write(f"\n{output}\n")


if __name__ == "__main__":
    main()
