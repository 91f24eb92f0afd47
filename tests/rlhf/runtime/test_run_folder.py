import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from policies.config import StrictModel
from policies.disk import DiskError
from rlhf.runtime.run_folder import RunFiles, RunFolder, open_run
from tests.full_disk import largest_file

CONFIG = {"run_dir": "somewhere", "seed": 3, "optimizer": {"learning_rate": 1e-5, "betas": [0.9, 0.95]}, "tracking": {}}


def started(path: Path, steps: int = 0) -> RunFiles:
    """A run of `steps` logged steps, one sample each, whose process has ended."""
    with RunFolder.create(path, CONFIG) as folder:
        for step in range(1, steps + 1):
            folder.append_metrics(step, {"objective/kl": step / 4})
            folder.append_samples(step, [{"prompt": "p", "response": f"r{step}"}])
    return RunFiles(path)


def steps_in(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def test_a_new_run_records_its_config_and_the_environment_it_ran_in(tmp_path: Path) -> None:
    files = started(tmp_path / "deep" / "run")
    assert yaml.safe_load(files.config_path.read_text()) == CONFIG == files.read_config()
    (session,) = json.loads(files.environment_path.read_text())["sessions"]
    assert session["versions"]["torch"].startswith("2.")
    assert set(session) == {"started_at", "python", "platform", "versions", "git_commit", "git_has_changes"}


def test_a_folder_that_holds_a_run_is_refused_in_one_line_and_left_untouched(tmp_path: Path) -> None:
    files = started(tmp_path / "run", steps=2)
    before = {path: path.read_bytes() for path in files.path.iterdir()}
    with pytest.raises(ValueError, match=r"run_dir: '.*run' already holds a run; .*--resume") as refused:
        RunFolder.create(files.path, {**CONFIG, "seed": 4})
    assert "\n" not in str(refused.value)
    assert {path: path.read_bytes() for path in files.path.iterdir()} == before


@pytest.mark.parametrize("trace", ["metrics.jsonl", "summary.json", "checkpoints"])
def test_results_without_a_config_are_not_overwritten_either(tmp_path: Path, trace: str) -> None:
    (tmp_path / trace).mkdir()
    with pytest.raises(ValueError, match="already holds a run"):
        RunFolder.create(tmp_path, CONFIG)


def test_a_folder_with_unrelated_files_can_take_a_run_and_keeps_them(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    started(tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_run_dir_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"run_dir: '.*file' is a file, not a folder"):
        RunFolder.create(tmp_path / "file", CONFIG)
    with pytest.raises(ValueError, match=r"run_dir: '.*inside' cannot be written \(Not a directory\)"):
        RunFolder.create(tmp_path / "file" / "inside", CONFIG)


def test_resuming_where_there_is_no_run_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"run_dir: '.*absent' holds no run to resume; drop --resume"):
        RunFolder.resume(tmp_path / "absent", CONFIG)
    assert not (tmp_path / "absent").exists()


def test_resuming_with_another_config_names_every_changed_key(tmp_path: Path) -> None:
    files = started(tmp_path / "run")
    changed = {**CONFIG, "seed": 4, "optimizer": {"learning_rate": 1e-5}, "steps": 9}
    with pytest.raises(ValueError, match="--resume") as refused:
        RunFolder.resume(files.path, changed)
    message = str(refused.value)
    assert "seed (was 3, now 4)" in message
    assert "optimizer.betas (was [0.9, 0.95], now '(absent)')" in message
    assert "steps (was '(absent)', now 9)" in message
    assert "learning_rate" not in message
    assert "\n" not in message


class _Settings(StrictModel):
    run_dir: str
    steps: int = 8
    rate: float = 0.5


def test_a_run_of_an_earlier_version_goes_on_where_a_newer_key_stands_at_its_default(tmp_path: Path) -> None:
    path = tmp_path / "run"
    RunFolder.create(path, {"run_dir": str(path), "steps": 3}).close()
    with open_run(path, _Settings(run_dir=str(path), steps=3), resume=True) as folder:
        assert folder.read_config() == {"run_dir": str(path), "steps": 3}
    with pytest.raises(ValueError, match=r"differs from .* in rate \(was 0.5, now 0.25\);"):
        open_run(path, _Settings(run_dir=str(path), steps=3, rate=0.25), resume=True)


def test_a_key_that_a_later_version_dropped_is_named(tmp_path: Path) -> None:
    path = tmp_path / "run"
    RunFolder.create(path, {"run_dir": str(path), "steps": 3, "warmup": 5}).close()
    with pytest.raises(ValueError, match=r"warmup \(was 5, now '\(absent\)'\)"):
        open_run(path, _Settings(run_dir=str(path), steps=3), resume=True)


def test_a_moved_folder_and_another_tracking_do_not_prevent_resuming(tmp_path: Path) -> None:
    files = started(tmp_path / "run", steps=1)
    with RunFolder.resume(files.path, {**CONFIG, "run_dir": "elsewhere", "tracking": {"wandb": "off"}}) as folder:
        assert folder.last_step == 1
    assert files.read_config() == CONFIG
    assert len(json.loads(files.environment_path.read_text())["sessions"]) == 2


def test_truncating_leaves_one_line_a_step_after_the_steps_are_run_again(tmp_path: Path) -> None:
    files = started(tmp_path / "run", steps=5)
    with RunFolder.resume(files.path, CONFIG) as folder:
        folder.truncate_after(3)
        for step in (4, 5, 6):
            folder.append_metrics(step, {"objective/kl": 9.0})
            folder.append_samples(step, [{"prompt": "p", "response": "again"}])
    assert steps_in(files.metrics_path) == [1, 2, 3, 4, 5, 6]
    assert [row["objective/kl"] for row in files.read_metrics()] == [0.25, 0.5, 0.75, 9.0, 9.0, 9.0]
    assert [row["response"] for row in files.read_samples()] == ["r1", "r2", "r3", "again", "again", "again"]


def test_alerts_of_steps_that_run_again_are_dropped_with_them(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path, CONFIG) as folder:
        assert folder.read_alerts() == []
        for step in (2, 5):
            folder.append_alert({"step": step, "rule": "kl_runaway"})
    with RunFolder.resume(tmp_path, CONFIG) as folder:
        folder.truncate_after(4)
        folder.append_alert({"step": 6, "rule": "clip_fraction"})
    assert folder.read_alerts() == [{"step": 2, "rule": "kl_runaway"}, {"step": 6, "rule": "clip_fraction"}]


def test_a_last_line_torn_by_a_kill_is_dropped_and_written_again(tmp_path: Path) -> None:
    files = started(tmp_path / "run", steps=2)
    for path in (files.metrics_path, files.samples_path):
        with path.open("a") as file:
            file.write('{"step": 3, "objec')
    assert [row["step"] for row in files.read_metrics()] == [1, 2]
    with RunFolder.resume(files.path, CONFIG) as folder:
        folder.append_metrics(3, {"objective/kl": 0.75})
    assert steps_in(files.metrics_path) == [1, 2, 3]
    assert steps_in(files.samples_path) == [1, 2]


def test_a_damaged_line_in_the_middle_is_reported_with_its_number(tmp_path: Path) -> None:
    files = started(tmp_path / "run", steps=3)
    files.metrics_path.write_text('{"step": 1}\n{"step": 2, "obj\n{"step": 3}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl: line 2 is not a JSON object"):
        files.read_metrics()


def test_a_step_can_be_logged_only_once(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path, CONFIG) as folder:
        folder.append_metrics(2, {})
        with pytest.raises(AssertionError, match="step 2 after step 2: each step has exactly one metrics line"):
            folder.append_metrics(2, {})


def test_non_finite_numbers_stay_valid_json_and_come_back(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path, CONFIG) as folder:
        folder.append_metrics(1, {"a": math.nan, "b": math.inf, "c": -math.inf, "d": 0.5})
        folder.write_summary({"ppo": {"kl": [math.nan, 1.0]}})
    line = json.loads(folder.metrics_path.read_text(), parse_constant=lambda name: pytest.fail(f"bare {name}"))
    assert line == {"step": 1, "a": "NaN", "b": "Infinity", "c": "-Infinity", "d": 0.5}
    (row,) = folder.read_metrics()
    assert math.isnan(row["a"])  # pyright: ignore[reportArgumentType]
    assert (row["b"], row["c"], row["d"]) == (math.inf, -math.inf, 0.5)
    assert folder.read_summary() == {"ppo": {"kl": ["NaN", 1.0]}}


@pytest.mark.parametrize("file", ["metrics.jsonl", "samples.jsonl", "alerts.jsonl"])
def test_a_full_disk_is_an_error_that_names_the_file(tmp_path: Path, file: str) -> None:
    with RunFolder.create(tmp_path, CONFIG) as folder:
        # Every write to /dev/full fails as on a full disk.
        (tmp_path / file).symlink_to("/dev/full")
        with pytest.raises(DiskError, match=rf"{re.escape(str(tmp_path / file))} could not be written \(no space left"):
            {
                "metrics.jsonl": lambda: folder.append_metrics(1, {"objective/kl": 1.0}),
                "samples.jsonl": lambda: folder.append_samples(1, [{"prompt": "p"}]),
                "alerts.jsonl": lambda: folder.append_alert({"step": 1}),
            }[file]()


def test_a_summary_that_does_not_fit_leaves_the_old_one_and_no_rest(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path, CONFIG) as folder:
        folder.write_summary({"kl": 1})
        files = sorted(path.name for path in tmp_path.iterdir())
        with (
            pytest.raises(DiskError, match=r"summary\.json could not be written \(file too large\)"),
            largest_file(1000),
        ):
            folder.write_summary({"text": "long" * 1000})
    assert folder.read_summary() == {"kl": 1}
    assert sorted(path.name for path in tmp_path.iterdir()) == files


def test_what_fitted_of_a_line_is_dropped_when_the_run_is_resumed(tmp_path: Path) -> None:
    started(tmp_path, steps=2)
    room = (tmp_path / "metrics.jsonl").stat().st_size + 9
    with RunFolder.resume(tmp_path, CONFIG) as folder, pytest.raises(DiskError), largest_file(room):
        folder.append_metrics(3, {"objective/kl": 1.0})
    with RunFolder.resume(tmp_path, CONFIG) as folder:
        folder.append_metrics(3, {"objective/kl": 2.0})
        assert [row["objective/kl"] for row in folder.read_metrics()] == [0.25, 0.5, 2.0]


def test_texts_with_line_separators_and_lone_surrogates_survive(tmp_path: Path) -> None:
    texts = ["a\u2028b\u0085c\nd", "broken \udc80 byte", "日本 😀", "NaN"]
    with RunFolder.create(tmp_path, CONFIG) as folder:
        folder.append_samples(0, [{"response": text} for text in texts])
        folder.append_samples(1, [])
    assert [row["response"] for row in folder.read_samples()] == texts


def test_a_second_process_is_refused_while_the_first_lives_and_admitted_when_it_is_killed(tmp_path: Path) -> None:
    program = (
        "import sys, time; from rlhf.runtime.run_folder import RunFolder\n"
        f"folder = RunFolder.create({str(tmp_path / 'run')!r}, {CONFIG!r})\n"
        "folder.append_metrics(1, {'objective/kl': 1.0}); print('ready', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "ready\n"
        with pytest.raises(ValueError, match=rf"run_dir: '.*run' is in use by process {other.pid}; wait for it"):
            RunFolder.resume(tmp_path / "run", CONFIG)
        other.kill()
    with RunFolder.resume(tmp_path / "run", CONFIG) as folder:
        assert folder.last_step == 1
