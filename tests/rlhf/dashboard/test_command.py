import json
from pathlib import Path
from typing import Any

import pytest

from rlhf.cli import main
from rlhf.dashboard.command import project_of
from rlhf.dashboard.layout import dashboard_sections
from rlhf.runtime.run_folder import RunFolder

SECRET = "f00dfeed" * 5


def panels_of(view: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Panels of a saved view by the name of their section."""
    sections = view["spec"]["section"]["panelBankConfig"]["sections"]
    return {section["name"]: section["panels"] for section in sections}


@pytest.fixture
def views(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """What the command writes without a key."""
    pytest.importorskip("wandb_workspaces", reason="the extra dashboard is not installed")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    output = tmp_path / "views.json"
    assert main(["dashboard", "alignment", f"output={output}"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown == [f"dashboard of project alignment: {output}", "not sent: set WANDB_API_KEY to send it"]
    first = output.read_bytes()
    assert main(["dashboard", "alignment", f"output={output}"]) == 0
    assert output.read_bytes() == first, "the file is the same every time"
    return json.loads(first)["views"]


def test_the_file_holds_a_view_for_training_one_for_sweeps_and_one_for_comparing(views: list[dict[str, Any]]) -> None:
    assert [view["displayName"] for view in views] == ["RLHF", "RLHF sweep", "RLHF compare"]
    assert {view["project"] for view in views} == {"alignment"}
    training, sweep, comparison = map(panels_of, views)
    names = [section.name for section in dashboard_sections()]
    assert list(training) == names
    assert list(sweep) == ["sweep", *names]
    assert list(comparison) == ["comparison", *names]
    kinds = [panel["viewType"] for panel in sweep["sweep"]]
    assert kinds == ["Parallel Coordinates Plot", "Parameter Importance", "Scatter Plot"]
    assert "Run Comparer" in [panel["viewType"] for panel in comparison["comparison"]]


def test_every_plot_of_the_layout_is_a_panel_over_our_own_step(views: list[dict[str, Any]]) -> None:
    for section in dashboard_sections():
        lines = [panel for panel in panels_of(views[0])[section.name] if panel["viewType"] == "Run History Line Plot"]
        for panel, plot in zip(lines, section.plots, strict=True):
            config = panel["config"]
            assert (config["chartTitle"], config["xAxis"]) == (plot.heading, plot.x)
            assert config["metrics"] == list(plot.metrics)
            assert config.get("metricRegex", "") == plot.family
            assert config.get("yLogScale", False) == plot.is_log
    identifiers = [panel["__id__"] for panels in panels_of(views[0]).values() for panel in panels]
    assert len(set(identifiers)) == len(identifiers)


def test_the_views_survive_wandb_s_own_reading_and_writing(views: list[dict[str, Any]]) -> None:
    # Its library is an extra, and the fixture has skipped where it is missing.
    from rlhf.dashboard.workspace import views_from_json, views_to_json  # noqa: PLC0415

    assert views_to_json(views_from_json(views)) == views


class Server:
    """W&B as a script: gives each new view an id, keeps what it was sent, fails from the `fails_at`-th view on."""

    def __init__(self, fails_at: int = 99) -> None:
        self.sent: list[tuple[str, str]] = []
        self.fails_at = fails_at

    def save(self, view: Any) -> Any:
        if len(self.sent) >= self.fails_at:
            raise OSError("401 Unauthorized\nmore")
        self.sent.append((view.name, view._internal_id))
        view._internal_id = view._internal_id or f"id-{len(self.sent)}"
        view._internal_name = view._internal_name or f"nw-{len(self.sent)}-v"
        return view


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    workspaces = pytest.importorskip("wandb_workspaces.workspaces", reason="the extra dashboard is not installed")
    script = Server()
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    monkeypatch.setattr(workspaces.Workspace, "save", lambda view: script.save(view))
    monkeypatch.setattr(workspaces.Workspace, "url", property(lambda view: f"https://wandb.test/{view._internal_name}"))
    return script


def test_with_a_key_the_views_are_sent_and_sent_again_in_place(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["dashboard", "alignment", "entity=team", f"output={tmp_path / 'views.json'}"]
    assert main(command) == 0
    assert server.sent == [("RLHF", ""), ("RLHF sweep", ""), ("RLHF compare", "")]
    assert "RLHF sweep: https://wandb.test/nw-2-v" in capsys.readouterr().out
    assert main(command) == 0
    assert server.sent[3:] == [("RLHF", "id-1"), ("RLHF sweep", "id-2"), ("RLHF compare", "id-3")]
    assert SECRET not in (tmp_path / "views.json").read_text(encoding="utf-8")
    # Without a key the file is written again, and still knows what was sent.
    monkeypatch.delenv("WANDB_API_KEY")
    assert main(["dashboard", "alignment", command[-1]]) == 0
    saved = json.loads((tmp_path / "views.json").read_text(encoding="utf-8"))["views"]
    assert [(view["entity"], view["id"]) for view in saved] == [("team", f"id-{number}") for number in (1, 2, 3)]
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    # Of another project they are new.
    assert main(["dashboard", "other", *command[2:]]) == 0
    assert server.sent[6] == ("RLHF", "")


def test_a_view_that_wandb_refuses_is_one_line_and_the_file_knows_those_before(
    tmp_path: Path, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    server.fails_at = 1
    output = tmp_path / "views.json"
    assert main(["dashboard", "alignment", "entity=team", f"output={output}"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: W&B does not take the view 'RLHF sweep': 401 Unauthorized; check WANDB_API_KEY")
    assert [view["id"] for view in json.loads(output.read_text(encoding="utf-8"))["views"]] == ["id-1", "", ""]


def test_send_off_sends_nothing_and_send_on_needs_a_key(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = f"output={tmp_path / 'views.json'}"
    assert main(["dashboard", "alignment", "send=off", output]) == 0
    assert server.sent == []
    monkeypatch.delenv("WANDB_API_KEY")
    assert main(["dashboard", "alignment", "send=on", output]) == 2
    assert "send: on needs WANDB_API_KEY" in capsys.readouterr().err


def test_a_file_that_holds_something_else_is_not_overwritten(
    tmp_path: Path, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "notes.json"
    output.write_text("[1, 2]", encoding="utf-8")
    assert main(["dashboard", "alignment", "entity=team", f"output={output}"]) == 2
    assert "exists and holds no views" in capsys.readouterr().err
    assert output.read_text(encoding="utf-8") == "[1, 2]"
    assert server.sent == []


def test_the_word_is_a_project_or_a_run_of_one(tmp_path: Path) -> None:
    assert project_of("alignment") == "alignment"
    with RunFolder.create(tmp_path / "run", {"tracking": {"project": "of the run"}}):
        assert project_of(str(tmp_path / "run")) == "of the run"
    with pytest.raises(ValueError, match="holds no run"):
        project_of(str(tmp_path))
    with pytest.raises(ValueError, match="is no run folder"):
        project_of("runs/mistyped")
