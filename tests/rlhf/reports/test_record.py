from pathlib import Path

import pytest

from rlhf.cli import main
from rlhf.reports.page import ReportPage, render_page, write_report
from rlhf.reports.record import record_sections, setting_sections
from rlhf.reports.training import generic_training_page
from rlhf.runtime.run_folder import RunFiles, RunFolder

CONFIG = {
    "seed": 7,
    "model": {"path": "runs/sft/model", "tuning": {"kind": "lora", "rank": 8}, "quantization": None},
    "algorithm": {"kl": {"kind": "fixed", "coefficient": 0.25}, "ptx": None},
    "reward": [
        {"kind": "model", "name": None, "path": "runs/rm/model", "weight": 1.0},
        {"kind": "function", "function": "a:b", "weight": 0.5},
    ],
}


def write_run(folder: Path) -> RunFiles:
    with RunFolder.create(folder, CONFIG) as run:
        run.append_metrics(1, {"loss/train": 2.0})
        run.write_summary({"steps": 1})
    return RunFiles(folder)


def test_the_setting_names_what_decides_a_run_and_leaves_out_what_is_not_there(tmp_path: Path) -> None:
    (section,) = setting_sections(write_run(tmp_path))
    rows = [tuple(row) for row in section.tables[0].rows]
    assert rows[:-1] == [
        ("model", "runs/sft/model"),
        ("tuning", "lora, 8"),
        ("KL penalty, coefficient, target", "fixed, 0.25"),
        ("seed", "7"),
        ("reward", "model, runs/rm/model, weight 1"),
        ("reward", "function, a:b, weight 0.5"),
    ]
    assert rows[-1][0] == "versions"
    assert "torch 2" in str(rows[-1][1])
    assert generic_training_page(tmp_path).sections[0].title == "Setting"


def test_the_record_links_the_files_that_are_there(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (section,) = record_sections(write_run(tmp_path))
    paths = [link.path for link in section.links]
    assert paths == ["config.yaml", "metrics.jsonl", "summary.json", "environment.json", "model/"]
    assert '<a href="metrics.jsonl">' in render_page(generic_training_page(tmp_path))


def test_a_page_that_is_written_elsewhere_finds_the_files_of_its_run(tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "first run")
    (tmp_path / "pages").mkdir()
    assert main(["report", str(tmp_path / "runs" / "first run"), f"output={tmp_path / 'pages' / 'one.html'}"]) == 0
    assert 'href="../runs/first%20run/config.yaml"' in (tmp_path / "pages" / "one.html").read_text(encoding="utf-8")


def test_an_empty_folder_has_neither(tmp_path: Path) -> None:
    assert setting_sections(RunFiles(tmp_path)) == []
    assert record_sections(RunFiles(tmp_path)) == []


def test_a_page_that_only_its_stage_can_write_is_not_replaced_by_a_poorer_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    RunFolder.create(run, CONFIG).close()
    page = write_report(run, ReportPage("Rankings of run", is_from_files=False))
    before = page.read_bytes()
    assert main(["report", str(run)]) == 2
    assert "was written by its stage, of more than the folder keeps, and stays; name output=FILE" in (
        capsys.readouterr().err
    )
    assert page.read_bytes() == before
    assert main(["report", str(run), f"output={tmp_path / 'metrics.html'}"]) == 0
    write_report(run, ReportPage("Training of run"))
    assert main(["report", str(run)]) == 0
    assert "Training of run" not in page.read_text(encoding="utf-8")
