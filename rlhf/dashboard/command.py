"""`rlhf dashboard [PROJECT or RUN]`."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from rich.console import Console

from rlhf.dashboard.config import DashboardConfig
from rlhf.runtime.json_lines import encode, write_atomically
from rlhf.runtime.run_folder import RunFiles
from rlhf.runtime.sinks.weights_and_biases import default_entity


def run(config: DashboardConfig, *, resume: bool) -> None:
    """Writes the project's views to `output`, sends them where there is a key, and says where both are.

    Raises:
        ValueError: the extra `dashboard` is not installed, `send=on` without WANDB_API_KEY, `output` is no file of
            views, or the run folder holds no run.
        DashboardError: W&B does not take the views; the file is written.
    """
    assert not resume, "the command line offers --resume to resumable stages only"
    project, has_key = project_of(config.projects[0]), bool(os.environ.get("WANDB_API_KEY"))
    if config.send == "on" and not has_key:
        raise ValueError(
            "send: on needs WANDB_API_KEY in the environment, which is not set; set it, or choose send=off"
        )
    workspace = _workspace_module()
    is_sent = has_key and config.send != "off"
    output = Path(config.output)
    sent = [entry for entry in _read(output) if entry["project"] == project and entry["id"]]
    # A view that is only written again stays that of its owner.
    owner = str(sent[0]["entity"]) if sent else ""
    entity = config.entity or (default_entity() if is_sent else owner)
    known = {entry["displayName"]: entry for entry in sent if entry["entity"] == entity}
    views = workspace.build_views(project, entity=entity, sent_before=known)
    console = Console(highlight=False, markup=False, soft_wrap=True)
    _write(output, workspace.views_to_json(views))
    console.print(f"dashboard of project {project}: {output}")
    if is_sent:
        for view in views:
            console.print(f"{view.name}: {workspace.send_view(view)}")
            # After each, so that what W&B has is known even where the next one fails.
            _write(output, workspace.views_to_json(views))
    else:
        console.print("not sent: set WANDB_API_KEY to send it" if not has_key else "not sent: send=off")


def project_of(word: str) -> str:
    """The W&B project that a word names: that of a run, where it is a folder, else the word itself.

    Raises:
        ValueError: the folder holds no run, or the word can be no project.
    """
    files = RunFiles(word)
    if files.config_path.is_file():
        tracking = cast(Mapping[str, Any], files.read_config().get("tracking", {}))
        return str(tracking.get("project", "rlhf"))
    if files.path.is_dir():
        raise ValueError(f"projects: '{word}' is a folder that holds no run; name a run folder or a W&B project")
    if not word or set(word) & set("/\\#?%:"):
        raise ValueError(f"projects: '{word}' is no run folder, and a W&B project has none of / \\ # ? % : in its name")
    return word


def _read(output: Path) -> list[dict[str, Any]]:
    if not output.exists():
        return []
    try:
        entries = json.loads(output.read_text(encoding="utf-8"))["views"]
        return [{key: entry[key] for key in ("displayName", "project", "entity", "name", "id")} for entry in entries]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"output: '{output}' exists and holds no views; name another file, or remove it") from error


def _write(output: Path, views: Sequence[Mapping[str, Any]]) -> None:
    write_atomically(output, encode({"views": list(views)}, indent=2) + "\n")


def _workspace_module() -> ModuleType:
    try:
        # It needs an extra; one that is missing is worth a line, not a traceback.
        from rlhf.dashboard import workspace  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise ValueError(
            f"dashboard: the package {error.name} is not installed; install the extra: pip install 'rlhf[dashboard]'"
        ) from error
    return workspace
