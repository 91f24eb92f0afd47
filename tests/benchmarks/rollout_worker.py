"""One contender of the rollout benchmark, in a process of its own: a line in asks for a run, a line of JSON answers.

`bench_rollout` starts it as `python -m tests.benchmarks.rollout_worker NAME`; it ends with its input.
"""

import json
import resource
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from typing import Any

from policies.backbone import Backbone
from tests.benchmarks.machine_limits import describe_machine
from tests.benchmarks.rollout_contenders import CONTENDERS, Contender
from tests.benchmarks.rollout_measures import largest_logprob_error, limits, work
from tests.benchmarks.rollout_workload import KINDS, backbone

VLLM = "vllm"
"""The contender that only its own environment can import."""
LIMITS = "limits"
"""The worker that measures the machine instead of an engine."""


def main(name: str) -> None:
    """Serves until the input ends. Whatever libraries print goes to the error stream."""
    answers = sys.stdout
    with redirect_stdout(sys.stderr):
        answer = measure_limits if name == LIMITS else contender(_named(name))
        for line in sys.stdin:
            answers.write(json.dumps(answer(line.strip())) + "\n")
            answers.flush()


def _named(name: str) -> Contender:
    if name == VLLM:
        from tests.benchmarks.rollout_vllm import vllm  # noqa: PLC0415 - in an environment of its own

        return vllm
    return CONTENDERS[name]


def measure_limits(kind: str) -> dict[str, Any]:
    """What a workload is, and what the machine can do now."""
    return {"machine": describe_machine(), "work": work(kind), **limits()}


def contender(run: Contender) -> Callable[[str], dict[str, Any]]:
    """A function from a workload's name to the measures of one run on it."""
    loaded_backbone = backbone()
    loaded = _peak_mib()
    for kind in KINDS:
        run(loaded_backbone, kind)  # warm-up: what is allocated, compiled or traced once is not timed
    return lambda kind: _timed(run, loaded_backbone, kind, loaded)


def _timed(run: Contender, loaded_backbone: Backbone, kind: str, loaded: float) -> dict[str, Any]:
    start, processor_start = time.perf_counter(), time.process_time()
    sampled = run(loaded_backbone, kind)
    seconds, processor_seconds = time.perf_counter() - start, time.process_time() - processor_start
    return {
        "seconds": seconds,
        "processor_seconds": processor_seconds,
        "tokens": sampled.tokens,
        "peak_above_loaded_model_mib": _peak_mib() - loaded,
        "logprob_error": largest_logprob_error(loaded_backbone, kind, sampled),
    }


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main(sys.argv[1])
