"""The last words of a training stage on the terminal: what it found, and where its model and its page lie.

Silent where a surrounding display speaks for a chain of stages. Owns no numbers.
"""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from rlhf.runtime.run_folder import RunFiles
from rlhf.runtime.terminal import stages_announce


def print_closing(run_folder_path: Path, findings: Sequence[str] = ()) -> None:
    """Prints the findings, a line each, then `model FOLDER, report PAGE`; a run without a model has a page only."""
    if not stages_announce():
        return
    console = Console(highlight=False, markup=False)
    model = run_folder_path / "model"
    places = [*([f"model {model}"] if model.is_dir() else []), f"report {RunFiles(run_folder_path).report_path}"]
    for line in (*findings, ", ".join(places)):
        console.print(line, soft_wrap=True)
