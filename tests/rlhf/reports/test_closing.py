"""The last words of a training stage."""

from pathlib import Path

import pytest

from rlhf.reports.closing import print_closing
from rlhf.runtime.console import ConsoleSink
from rlhf.runtime.terminal import terminal_sinks_from


def test_findings_model_and_page_stand_on_lines_of_their_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model").mkdir()
    print_closing(tmp_path, ["accuracy 0.781 [of 32]"])
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["accuracy 0.781 [of 32]", f"model {tmp_path / 'model'}, report {tmp_path / 'report.html'}"]


def test_a_run_without_a_model_names_its_page_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    print_closing(tmp_path)
    assert capsys.readouterr().out == f"report {tmp_path / 'report.html'}\n"


def test_inside_a_chain_of_stages_nothing_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with terminal_sinks_from(ConsoleSink):
        print_closing(tmp_path, ["unheard"])
    assert capsys.readouterr().out == ""
