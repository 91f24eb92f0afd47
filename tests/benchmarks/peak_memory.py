"""The peak memory of each phase of a run in one process: of its tensors, and of the process as a whole.

Run as a module by `test_memory_plan`, in a process of its own:

    python -m tests.benchmarks.peak_memory FOLDER          PPO; FOLDER as `ppo_workload.write_workload` leaves it
    python -m tests.benchmarks.peak_memory FOLDER STAGE    another stage, as `stage_workload.write_stage` leaves it

Tensors are counted by torch's allocator. The process has its libraries beside them, kernels compiled for the shapes it
has met, and memory that the C library keeps for later.
"""

import functools
import json
import resource
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import torch
from torch._C._profiler import _EventType
from torch.profiler import ProfilerActivity, profile, record_function
from transformers import PreTrainedModel

from rlhf.config import DpoConfig, PpoConfig, PretrainConfig, RewardConfig, SftConfig
from rlhf.process_environment import prepare_environment
from rlhf.roles import RoleHost
from rlhf.trainers import dpo, ppo, pretrain, reward, sft

PHASES = {
    "generate": "rollout",
    "reference_logprobs": "scoring",
    "values": "scoring",
    "update": "update",
}
WHOLE = "run"
STAGES: dict[str, tuple[type[Any], Callable[..., None]]] = {
    "pretrain": (PretrainConfig, pretrain.run),
    "sft": (SftConfig, sft.run),
    "reward": (RewardConfig, reward.run),
    "dpo": (DpoConfig, dpo.run),
    "ppo": (PpoConfig, ppo.run),
}
_MARK = "phase: "


def main(folder: Path, stage: str = "ppo") -> None:
    """Runs a stage and prints bytes as a JSON object: of tensors by phase, of the process as `process`."""
    prepare_environment()
    torch.set_num_threads(1)
    class_, run = STAGES[stage]
    config = class_.model_validate(json.loads((folder / f"{stage}.json").read_text(encoding="utf-8")))
    shutil.rmtree(config.run_dir, ignore_errors=True)
    _read_into_allocated_memory()
    for method, phase in PHASES.items():
        setattr(RoleHost, method, _marked(getattr(RoleHost, method), phase))
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        _marked(run, WHOLE)(config, resume=False)
    assert profiler.profiler is not None, "the block has run"
    results = profiler.profiler.kineto_results
    assert results is not None, "the block has run"
    peaks = _peaks(results.experimental_event_tree())
    process = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sys.stdout.write(json.dumps(peaks | {"process": process}) + "\n")


def _read_into_allocated_memory() -> None:
    """Weights that are read from a file lie in its mapped pages, which torch's allocator does not see."""
    from_pretrained = PreTrainedModel.from_pretrained.__func__

    def copied(cls: type[PreTrainedModel], *arguments: Any, **keywords: Any) -> Any:
        loaded = from_pretrained(cls, *arguments, **keywords)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        for parameter in model.parameters():
            parameter.data = parameter.data.clone()
        return loaded

    cast(Any, PreTrainedModel).from_pretrained = classmethod(copied)


def _marked(method: Callable[..., Any], phase: str) -> Callable[..., Any]:
    @functools.wraps(method)
    def marked(*arguments: Any, **keywords: Any) -> Any:
        with record_function(_MARK + phase):
            return method(*arguments, **keywords)

    return marked


def _peaks(events: list[Any]) -> dict[str, int]:
    """Most bytes that tensors had at the same time, inside each phase."""
    peaks: dict[str, int] = {}
    for event in _walk(events):
        if event.name.startswith(_MARK):
            phase = event.name.removeprefix(_MARK)
            sizes = [size for inner in _walk(event.children) if (size := _allocated(inner)) is not None]
            peaks[phase] = max([peaks.get(phase, 0), *sizes])
    return peaks


def _allocated(event: Any) -> int | None:
    kind, fields = event.typed
    return fields.total_allocated if kind == _EventType.Allocation else None


def _walk(events: list[Any]) -> Iterator[Any]:
    waiting = list(events)
    while waiting:
        event = waiting.pop()
        yield event
        waiting += event.children


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
