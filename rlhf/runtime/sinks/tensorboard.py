"""A run's numbers as TensorBoard event files. The only file that imports torch.utils.tensorboard."""

from collections.abc import Mapping, Sequence

from rlhf.runtime.health.rule import Alert
from rlhf.runtime.run_folder import RunFolder
from rlhf.runtime.sinks.sink import Rows

FOLDER = "tensorboard"


class TensorboardSink:
    """Event files in `<run_dir>/tensorboard`, for `tensorboard --logdir`.

    A scalar a metric, on our step; samples as a table, alerts as text. A resumed run writes a further file, which takes
    the place of the steps that it repeats.

    Args:
        run_folder: Whose `tensorboard/` receives the files.
    """

    def __init__(self, run_folder: RunFolder) -> None:
        # Heavy, and installed only where tracking.tensorboard asks for it.
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415

        # TensorBoard hides what an earlier file says of this step and later ones.
        resumed_at = 1 + (run_folder.last_step if run_folder.last_step is not None else -1)
        self._writer = SummaryWriter(str(run_folder.path / FOLDER), purge_step=resumed_at or None)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Adds a point to each metric's curve; readers see it at once."""
        for key, value in metrics.items():
            self._writer.add_scalar(key, value, step)
        self._writer.flush()

    def log_samples(self, step: int, rows: Rows) -> None:
        """Adds the answers as a table."""
        if rows:
            self._writer.add_text("samples", _markdown_table(rows), step)

    def log_alert(self, alert: Alert) -> None:
        """Adds the alert as text under its rule's name."""
        self._writer.add_text(f"alerts/{alert.rule}", f"{alert.finding}. {alert.remedy}", alert.step)

    def close(self, summary: Mapping[str, object], *, failed: bool) -> None:  # noqa: ARG002 - every sink's signature
        """Writes what is left; the summary is in the run folder."""
        self._writer.close()


def _markdown_table(rows: Rows) -> str:
    header = list(rows[0])
    lines = [header, ["---"] * len(header), *([_cell(value) for value in row.values()] for row in rows)]
    return "\n".join(_line(cells) for cells in lines)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(value: object) -> str:
    """On one line, with what Markdown or HTML would take for markup made harmless."""
    text = str(value).replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")
    return "<br>".join(text.splitlines())
