"""`rlhf methods`: the runs it makes, what it keeps, and the numbers of its table."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlhf.classification import stage
from rlhf.classification.methods import compare, run, sub_run
from rlhf.config import ClassifyConfig, MethodsConfig
from rlhf.runtime.run_folder import RunFiles

ROWS = [
    {"text": f"{start} sat {place}", "label": index % 2}
    for index, (start, place) in enumerate(
        (start, place)
        for start in ("a cat", "the dog")
        for place in ("in rain", "on a mat", "at sea", "by night", "all day")
    )
]
WORDS = {"kind": "words", "words": {"0": ["bird"], "1": ["and"]}}
CLOZE = {"kind": "cloze", "prompts": {"kind": "written", "templates": ["{text} is {answer}"], "verbalizer": WORDS}}
METHODS = [
    {"name": "full"},
    {"name": "head-only", "method": {"kind": "head", "trains": "head"}, "learning_rate": 0.05, "epochs": 1},
]


@pytest.fixture
def configure(tmp_path: Path, tiny_llama_folder: Path) -> Any:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))

    def build(**changes: Any) -> MethodsConfig:
        rows = str(tmp_path / "rows.jsonl")
        settings: dict[str, Any] = {
            "run_dir": str(tmp_path / "methods"),
            "classify": {
                "model": {"path": str(tiny_llama_folder)},
                "data": {"train": rows, "eval": rows},
                "labels": [0, 1],
                "method": CLOZE,
                "epochs": 2,
                "examples_per_step": 5,
                "max_tokens": 64,
            },
            "methods": METHODS,
            "seeds": [3, 4],
            "tracking": {"wandb": "off"},
        }
        return MethodsConfig.model_validate(settings | changes)

    return build


def scripted(correct: dict[str, list[int]], seen: list[str]) -> Any:
    """Stands for a run: writes what a classification leaves, right where `correct` says so."""

    def run_one(config: ClassifyConfig, resume: bool) -> None:  # noqa: FBT001
        assert not resume
        folder = Path(config.run_dir)
        name = f"{folder.parent.name}/{folder.name}"
        seen.append(name)
        folder.mkdir(parents=True)
        rows = [
            {"row": row, "label": "0", "predicted": "0" if right else "1"} for row, right in enumerate(correct[name])
        ]
        (folder / stage.PREDICTIONS_FILE).write_text("".join(json.dumps(row) + "\n" for row in rows))
        is_full = folder.parent.name == "full"
        numbers = {"trained_share": 1.0 if is_full else 0.01, "trained_parameters": 100, "seconds": float(config.seed)}
        (folder / "summary.json").write_text(json.dumps({**numbers, "peak_memory_mib": 7.0}))
        (folder / "config.yaml").write_text(json.dumps(config.model_dump(mode="json")))

    return run_one


CORRECT = {
    "full/seed-3": [1, 1, 1, 0],
    "full/seed-4": [1, 1, 0, 0],
    "head-only/seed-3": [1, 0, 1, 1],
    "head-only/seed-4": [1, 0, 1, 0],
    "lora/seed-3": [0, 0, 0, 0],
    "lora/seed-4": [1, 0, 0, 0],
}


def test_the_table_has_means_ranges_and_paired_differences(configure: Any) -> None:
    full, head = compare(configure(), resume=False, run_one=scripted(CORRECT, []))
    assert (full.accuracy, full.lowest, full.highest) == (0.625, 0.5, 0.75)
    assert (head.accuracy, head.lowest, head.highest) == (0.625, 0.5, 0.75)
    assert full.difference.value == full.difference.low == full.difference.high == 0.0
    # By text, mean over seeds: 0, -1, +0.5, +0.5.
    assert head.difference.value == 0.0
    assert head.difference.low < 0 < head.difference.high
    assert (head.seconds, head.trained_share) == (3.5, 0.01)


@pytest.mark.parametrize("others", [[1, 0, 1], [1, 0, 1, 1, 0]], ids=["fewer", "more"])
def test_methods_that_labelled_different_rows_are_not_compared(configure: Any, others: list[int]) -> None:
    with pytest.raises(ValueError, match=r"head-only with seed 4 labelled \d held-out rows, full with seed 3 4"):
        compare(configure(), resume=False, run_one=scripted(CORRECT | {"head-only/seed-4": others}, []))


def test_the_summary_names_the_methods_with_the_adapter_result(configure: Any) -> None:
    config = configure()
    compare(config, resume=False, run_one=scripted(CORRECT, []))
    summary = RunFiles(config.run_dir).read_summary()
    assert summary["meets_adapter_result"] == ["head-only"]
    assert "<svg" in (Path(config.run_dir) / "report.html").read_text()


def test_a_resumed_comparison_keeps_what_has_finished_and_may_get_another_method(configure: Any) -> None:
    seen: list[str] = []
    compare(configure(), resume=False, run_one=scripted(CORRECT, seen))
    assert len(seen) == 4
    more = configure(methods=[*METHODS, {"name": "lora", "tuning": {"kind": "lora"}}])
    rows = compare(more, resume=True, run_one=scripted(CORRECT, seen))
    assert seen[4:] == ["lora/seed-3", "lora/seed-4"]
    assert rows[-1].accuracy == 0.125


def test_a_finished_run_of_another_configuration_is_not_taken_over(configure: Any) -> None:
    compare(configure(), resume=False, run_one=scripted(CORRECT, []))
    changed = configure(methods=[{"name": "full", "learning_rate": 0.5}])
    with pytest.raises(ValueError, match=r"full/seed-3.*learning_rate"):
        compare(changed, resume=True, run_one=scripted(CORRECT, []))


def test_each_method_changes_only_what_it_names(configure: Any) -> None:
    config = configure()
    full, head = (sub_run(config, method, 4) for method in config.methods)
    assert full.method == config.classify.method
    assert (head.epochs, head.optimizer.learning_rate, head.seed) == (1, 0.05, 4)
    assert head.model == full.model == config.classify.model
    assert full.optimizer == config.classify.optimizer


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"reference": "lora"}, "reference='lora' is none of the methods"),
        ({"methods": [METHODS[0], METHODS[0]]}, "not all different"),
        ({"seeds": [1, 1]}, "a seed stands there twice"),
    ],
)
def test_a_table_that_makes_no_sense_is_refused(configure: Any, changes: Any, problem: str) -> None:
    with pytest.raises(ValueError, match=r"methods|seeds") as caught:
        configure(**changes)
    assert problem in str(caught.value)


@pytest.mark.slow
def test_methods_run_in_processes_of_their_own(configure: Any) -> None:
    config = configure(seeds=[0])
    run(config, resume=False)
    summary = RunFiles(config.run_dir).read_summary()
    methods: Any = summary["methods"]
    assert methods["head-only"]["trained_parameters"] == 66
    assert all(row["peak_memory_mib"] > 50 for row in methods.values())


@pytest.mark.slow
def test_a_comparison_that_is_ended_takes_its_run_along(configure: Any, tmp_path: Path) -> None:
    config = configure(seeds=[0])
    endless = config.classify.model_copy(update={"epochs": 1e6})
    path = tmp_path / "methods.yaml"
    path.write_text(config.model_copy(update={"classify": endless}).model_dump_json())
    process = subprocess.Popen([sys.executable, "-m", "rlhf.cli", "methods", str(path)], stdout=subprocess.DEVNULL)
    lock = Path(config.run_dir) / "full" / "seed-0" / ".lock"
    wait_until(lambda: (lock.parent / "metrics.jsonl").exists())
    run_process = int(lock.read_text())
    assert is_running(run_process)
    process.terminate()
    process.wait(10)
    wait_until(lambda: not is_running(run_process))


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.05)


def is_running(process: int) -> bool:
    """False for one that nobody has buried yet."""
    status = Path(f"/proc/{process}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"
