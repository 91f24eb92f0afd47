import ast
import errno
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from policies.config import StrictModel
from rlhf import cli, exit_status
from rlhf.config_loading.loader import describe_fields
from rlhf.process_environment import PROCESS_ENVIRONMENT, prepare_environment
from rlhf.stages import STAGES, Stage, UnknownStageError, find_stage, resolve

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "transformers", "trl", "peft", "datasets", "ray", "wandb", "numpy")


class DiskFullError(RuntimeError):
    """Outside failure of one of our modules."""


DiskFullError.__module__ = "rlhf.runtime.training_state"


class Config(StrictModel):
    """Config of the stages in these tests."""

    run_dir: str | None = "run"
    """Folder."""
    steps: int = 3
    """Steps."""


class Bench:
    """A registry with one scripted stage, `train`, and what its functions were called with."""

    def __init__(self, module: ModuleType) -> None:
        self.module = module
        self.calls: list[tuple[Config, bool]] = []
        self.script: Callable[[], object] = lambda: None
        stage = Stage(
            name="train",
            summary="do nothing",
            config=f"{module.__name__}:Config",
            run=f"{module.__name__}:run",
            examples=("train.yaml", "train.yaml steps=5"),
            plan=f"{module.__name__}:plan",
            is_resumable=True,
        )
        self.stages = {
            "train": stage,
            "look": replace(stage, name="look", is_resumable=False, needs_config=False, plan=None),
        }

    def run(self, config: Config, *, resume: bool) -> None:
        self.calls.append((config, resume))
        self.script()

    def main(self, *arguments: str) -> int:
        return cli.main(arguments, stages=self.stages)


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Bench:
    monkeypatch.chdir(tmp_path)
    module = ModuleType("scripted_stage")
    bench = Bench(module)
    vars(module).update(Config=Config, run=bench.run, plan=lambda config: [f"{config.steps} steps", "", "no actor"])
    monkeypatch.setitem(sys.modules, module.__name__, module)
    Path("train.yaml").write_text("steps: 4\n", encoding="utf-8")
    return bench


def failing(error: BaseException) -> Callable[[], None]:
    def script() -> None:
        raise error

    return script


# --- arguments --------------------------------------------------------------------------------------------------------


def test_a_stage_gets_its_config_and_nothing_is_printed(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main("train", "train.yaml", "run_dir=a") == 0
    assert bench.calls == [(Config(run_dir="a", steps=4), False)]
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    "arguments",
    [
        ("train.yaml", "steps=7", "--resume"),
        ("--resume", "train.yaml", "steps=7"),
        ("train.yaml", "--resume", "steps=7"),
    ],
)
def test_options_may_stand_anywhere_after_the_stage(bench: Bench, arguments: tuple[str, ...]) -> None:
    assert bench.main("train", *arguments) == 0
    assert bench.calls == [(Config(steps=7), True)]


def test_a_stage_without_need_of_a_file_takes_overrides_alone(bench: Bench) -> None:
    assert bench.main("look", "steps=9") == 0
    assert bench.main("look", "train.yaml") == 0
    assert bench.main("look") == 0
    assert [config.steps for config, _ in bench.calls] == [9, 4, 3]


def test_a_config_file_may_have_an_equals_sign_in_its_path(bench: Bench) -> None:
    Path("lr=1").mkdir()
    Path("lr=1/train.yaml").write_text("steps: 6\n", encoding="utf-8")
    assert bench.main("train", "lr=1/train.yaml") == 0
    assert bench.calls[0][0].steps == 6


def test_dry_run_prints_a_loadable_config_with_the_plan_and_starts_nothing(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench.main("train", "train.yaml", "run_dir=a", "--dry-run") == 0
    output = capsys.readouterr().out
    assert output == "run_dir: a\nsteps: 4\n# 4 steps\n#\n# no actor\n"
    assert yaml.safe_load(output) == {"run_dir": "a", "steps": 4}
    assert bench.calls == []
    assert not Path("a").exists()


def test_dry_run_of_a_stage_without_a_plan_prints_the_config(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main("look", "--dry-run") == 0
    assert capsys.readouterr().out == "run_dir: run\nsteps: 3\n"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("trian", "train.yaml"), "error: stage: received 'trian'; allowed: train | look; did you mean train?"),
        (("x.yaml",), "error: stage: received 'x.yaml'; allowed: train | look; see `rlhf --help`"),
        (("train",), "error: rlhf train: CONFIG is missing; name a YAML file first, as in `rlhf train train.yaml`"),
        (
            ("train", "steps=3"),
            "error: rlhf train: CONFIG is missing; name a YAML file first, as in `rlhf train train.yaml`",
        ),
        (
            ("train", "train.yaml", "--dryrun"),
            "error: --dryrun: unknown option, did you mean --dry-run?; see `rlhf train --help`",
        ),
        (("train", "train.yaml", "--zzz"), "error: --zzz: unknown option; see `rlhf train --help`"),
        (
            ("train", "train.yaml", "--dry"),
            "error: --dry: unknown option, did you mean --dry-run?; see `rlhf train --help`",
        ),
        (
            ("look", "--resume"),
            "error: --resume: rlhf look keeps no state to continue from; run it again without --resume",
        ),
        (
            ("train", "train.yaml", "other"),
            "error: override 'other': allowed: a.b=value; write a dotted key, '=', and a YAML value",
        ),
        (("train", "tran.yaml"), "error: tran.yaml: no such config file; did you mean train.yaml?"),
    ],
)
def test_wrong_arguments_get_one_line_and_exit_code_2(
    bench: Bench, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], line: str
) -> None:
    assert bench.main(*arguments) == exit_status.USER_ERROR
    assert capsys.readouterr() == ("", line + "\n")
    assert bench.calls == []


def test_each_problem_of_a_config_gets_a_line(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main("train", "train.yaml", "steps=x", "stepps=1") == 2
    assert capsys.readouterr().err == (
        "error: steps: received x (text); allowed: integer; write a number\n"
        "error: stepps: unknown key (received 1); did you mean steps?\n"
    )


# --- how a run ends ---------------------------------------------------------------------------------------------------


def test_a_user_error_of_a_run_is_one_line(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    bench.script = failing(json.JSONDecodeError("data.train: bad row", "x", 0))
    assert bench.main("train", "train.yaml") == 2
    assert capsys.readouterr().err.startswith("error: data.train: bad row")


def test_a_missing_file_is_named_with_its_path(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    bench.script = lambda: Path("absent.jsonl").read_text(encoding="utf-8")
    assert bench.main("train", "train.yaml") == 2
    assert capsys.readouterr().err == (
        "error: absent.jsonl: no such file or directory; check the path and its permissions\n"
    )


def test_a_library_s_value_error_says_where_it_arose(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    bench.script = lambda: json.loads("{")
    assert bench.main("train", "train.yaml") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: Expecting property name")
    assert "raised in decoder.py:" in line
    assert "called from cli.py:" in line
    assert line.endswith("RLHF_DEBUG=1 shows the traceback)")


def test_debug_shows_the_traceback_before_the_line(
    bench: Bench, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RLHF_DEBUG", "1")
    assert bench.main("train", "train.yaml", "steps=x") == 2
    error = capsys.readouterr().err
    assert "Traceback (most recent call last)" in error
    assert error.endswith("error: steps: received x (text); allowed: integer; write a number\n")


def test_an_outside_failure_says_where_the_state_is_and_how_to_continue(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    def save_and_fail() -> None:
        Path("my run/checkpoints/step-00000050").mkdir(parents=True)
        raise DiskFullError("the disk is full")

    bench.script = save_and_fail
    assert bench.main("train", "train.yaml", "run_dir=my run") == exit_status.OUTSIDE_FAILURE
    assert capsys.readouterr().err == (
        "error: the disk is full; state saved in my run/checkpoints; "
        "continue with: rlhf train train.yaml 'run_dir=my run' --resume\n"
    )


def test_a_run_whose_checkpoints_are_all_damaged_is_not_offered_to_be_resumed(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    error = DiskFullError("no checkpoint is intact")
    error.nothing_to_resume = True  # pyright: ignore[reportAttributeAccessIssue] - as the class that says so has it
    Path("my run/checkpoints/step-00000050").mkdir(parents=True)
    bench.script = failing(error)
    assert bench.main("train", "train.yaml", "run_dir=my run", "--resume") == exit_status.OUTSIDE_FAILURE
    assert capsys.readouterr().err == "error: no checkpoint is intact\n"


def test_an_interrupt_before_the_first_checkpoint_says_so(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    Path("run").mkdir()
    bench.script = failing(KeyboardInterrupt())
    assert bench.main("train", "train.yaml", "--resume") == exit_status.INTERRUPTED
    assert capsys.readouterr().err == (
        "interrupted; no checkpoint was saved yet; continue with: rlhf train train.yaml --resume\n"
    )


def test_an_interrupt_before_anything_was_written_tells_to_start_again(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    bench.script = failing(KeyboardInterrupt())
    assert bench.main("train", "train.yaml") == 130
    assert capsys.readouterr().err == "interrupted; nothing was saved; start again with: rlhf train train.yaml\n"


def test_checkpoints_of_a_chain_s_stages_count_as_saved_state(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    Path("run/ppo/checkpoints/step-00000010").mkdir(parents=True)
    bench.script = failing(KeyboardInterrupt())
    assert bench.main("train", "train.yaml") == 130
    assert "state saved in run/ppo/checkpoints" in capsys.readouterr().err


def test_a_stage_that_chose_its_folder_itself_still_says_where_its_state_is(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("runs/first/ppo/checkpoints/step-00000010").mkdir(parents=True)
    bench.script = failing(KeyboardInterrupt())
    assert bench.main("train", "train.yaml", "run_dir=null") == 130
    assert "state saved in runs/first/ppo/checkpoints" in capsys.readouterr().err


@pytest.mark.parametrize("error", [KeyError("step"), RuntimeError("unknown"), NotADirectoryError(), OSError("disk")])
def test_a_defect_keeps_its_traceback(bench: Bench, error: Exception) -> None:
    bench.script = failing(error)
    with pytest.raises(type(error)) as caught:
        bench.main("train", "train.yaml")
    assert caught.value is error


def test_a_full_disk_is_an_outside_failure_also_where_nobody_has_worded_it(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    bench.script = failing(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    assert bench.main("train", "train.yaml") == exit_status.OUTSIDE_FAILURE
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: a file of the run: no space left on device; make room on that disk")


def test_a_workers_failure_is_reported_as_the_worker_raised_it() -> None:
    class WrappedError(Exception):
        def __init__(self, cause: Exception) -> None:
            super().__init__("long remote traceback")
            self.cause = cause

    WrappedError.__module__ = "ray.exceptions"
    wrapped = WrappedError(WrappedError(DiskFullError("the disk is full")))
    wrapped.add_note("state saved in run")
    assert exit_status.status_of(wrapped) == exit_status.OUTSIDE_FAILURE
    assert exit_status.lines_for(wrapped) == ["error: the disk is full; state saved in run"]


# --- help and start-up ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",), ("help",)])
def test_the_overview_lists_every_stage_with_an_example(
    bench: Bench, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    assert bench.main(*arguments) == 0
    output = capsys.readouterr().out
    assert "  train  do nothing\n" in output
    assert "  rlhf train train.yaml\n" in output


def test_help_of_a_stage_shows_only_what_it_takes(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    bench.main("train", "--help")
    assert "rlhf train CONFIG [a.b=value ...] [--dry-run] [--resume]" in capsys.readouterr().out
    bench.main("look", "-h")
    output = capsys.readouterr().out
    assert "rlhf look [CONFIG] [a.b=value ...] [--dry-run] [--keys]" in output
    assert "--resume" not in output


def test_keys_lists_type_default_and_meaning(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main("train", "--keys") == 0
    assert (
        capsys.readouterr().out
        == "run_dir: text | null; default run\n    Folder.\nsteps: integer; default 3\n    Steps.\n"
    )


def test_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == "rlhf 0.1.0\n"


def run_python(code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True, env=os.environ | variables
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["ppo", "--help"],
        ["ppo", "--keys"],
        ["ppo", "absent.yaml"],
        ["quickstart", "sed=1"],
        ["no-such-stage"],
    ],
)
def test_help_and_bad_configs_answer_before_anything_heavy_loads(arguments: list[str]) -> None:
    code = f"import sys; from rlhf.cli import main; main({arguments}); sys.stdout.write('\\n' + ' '.join(sys.modules))"
    loaded = run_python(code).stdout.splitlines()[-1].split()
    assert "rlhf.stages" in loaded
    assert [name for name in HEAVY if name in loaded] == []


def test_help_takes_under_half_a_second() -> None:
    def cpu_seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        run_python("from rlhf.cli import main; main(['--help'])")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    # Processor time: the wall clock of a busy machine says nothing about the command.
    assert min(cpu_seconds() for _ in range(3)) < 0.5


def test_the_environment_is_set_before_a_stage_loads_and_keeps_what_the_user_set() -> None:
    environment = {"WANDB_SILENT": "false"}
    prepare_environment(environment)
    assert environment == PROCESS_ENVIRONMENT | {"WANDB_SILENT": "false"}


def test_a_stage_sees_telemetry_switched_off(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_USAGE_STATS_ENABLED", raising=False)
    seen: list[str | None] = []
    bench.script = lambda: seen.append(os.environ.get("RAY_USAGE_STATS_ENABLED"))
    bench.main("train", "train.yaml")
    assert seen == ["0"]


# --- the registry -----------------------------------------------------------------------------------------------------


def test_an_unknown_stage_names_the_closest() -> None:
    with pytest.raises(UnknownStageError, match="did you mean quickstart"):
        find_stage("quikstart")


@pytest.mark.parametrize("stage", STAGES.values(), ids=lambda stage: stage.name)
def test_every_key_of_every_stage_is_described(stage: Stage) -> None:
    fields = describe_fields(resolve(stage.config))
    assert fields
    assert [field.name for field in fields if not field.description.endswith(".")] == []


@pytest.mark.parametrize("stage", STAGES.values(), ids=lambda stage: stage.name)
def test_every_stage_runs_a_function_of_config_and_resume(stage: Stage) -> None:
    module, _, function = stage.run.partition(":")
    # Read, not imported: the libraries behind the stages take seconds each.
    tree = ast.parse((ROOT / module.replace(".", "/")).with_suffix(".py").read_text(encoding="utf-8"))
    (found,) = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == function)
    assert [argument.arg for argument in found.args.args] == ["config"]
    assert [argument.arg for argument in found.args.kwonlyargs] == ["resume"]


@pytest.mark.parametrize("stage", STAGES.values(), ids=lambda stage: stage.name)
@pytest.mark.parametrize("index", [0, 1])
def test_every_example_of_the_help_is_a_valid_command(
    stage: Stage, index: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    words = [word for word in stage.examples[index].split() if not word.startswith("--")]
    assert cli.main([stage.name, *words, "--dry-run"]) == 0


def test_a_folder_that_holds_a_run_is_refused_before_the_stage_is_imported(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("run").mkdir()
    Path("run/config.yaml").write_text("steps: 4\n", encoding="utf-8")
    del vars(bench.module)["run"]
    assert bench.main("train", "train.yaml") == 2
    assert "run_dir: 'run' already holds a run; name another run_dir, or continue it with --resume" in (
        capsys.readouterr().err
    )
    vars(bench.module)["run"] = bench.run
    assert bench.main("train", "train.yaml", "--resume") == 0
    assert bench.main("look") == 0


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_a_process_keeps_the_memory_that_it_frees(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"):
        monkeypatch.delenv(name, raising=False)

    def faults(prepare: str) -> int:
        code = (
            f"import resource\nfrom rlhf.process_environment import prepare_environment\n{prepare}\n"
            "for _ in range(20): b'x' * 2**26\n"
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)"
        )
        return int(run_python(code).stdout)

    assert faults("prepare_environment()") < faults("pass") / 2


def test_a_process_keeps_few_kernels_of_the_processors_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", raising=False)
    code = (
        "from rlhf.process_environment import prepare_environment\nprepare_environment()\n"
        "import torch\nweight = torch.ones(64, 64, dtype=torch.bfloat16)\n"
        "for _ in range(2):\n"
        "    for rows in range(1, 701): torch.ones(rows, 64, dtype=torch.bfloat16) @ weight"
    )
    output = run_python(code, ONEDNN_VERBOSE="profile_create").stdout
    if "cache_miss" not in output:
        pytest.skip("torch multiplies without oneDNN here")
    # With room for all 700 sizes, the second round would make none.
    assert output.count("create:cache_miss") > 1000
