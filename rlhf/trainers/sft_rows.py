"""The rows of `rlhf sft`: as they stand in the files, or made by templates from a mixture of tasks."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from rlhf.config import SftConfig
from rlhf.conversations import Row
from rlhf.data import load_rows
from rlhf.instructions.config import MixtureConfig
from rlhf.instructions.held_out import HeldOutTasks
from rlhf.instructions.mixture import group_tasks, mix, questions_of, split_clusters, told_once
from rlhf.instructions.templates import read_templates


@dataclass(frozen=True, slots=True)
class SftRows:
    """What a run learns from.

    Attributes:
        train: Training rows.
        held_out: Rows of the held-out loss; empty without `data.eval`.
        mixture: Examples of each task; empty without a mixture.
        held_out_tasks: Tasks of held-out clusters; None without any.
        skipped: One line for each row that `on_bad_row=skip` left out.
    """

    train: Sequence[Row]
    held_out: Sequence[Row]
    mixture: dict[str, int] = field(default_factory=dict[str, int])
    held_out_tasks: HeldOutTasks | None = None
    skipped: Sequence[str] = ()


def read_demonstrations(config: SftConfig) -> SftRows:
    """Reads `data`.

    Raises:
        ValueError: what the user can fix.
    """
    data = config.data
    train = load_rows(data.train, field="data.train")
    held_out = [] if data.eval is None else load_rows(data.eval, field="data.eval")
    return SftRows(train, held_out) if data.mixture is None else _mixed(config, data.mixture, train, held_out)


def _mixed(config: SftConfig, mixture: MixtureConfig, train: Sequence[Row], held_out: Sequence[Row]) -> SftRows:
    data = config.data
    source = f"data.mixture.templates={mixture.templates}"
    templates = read_templates(load_rows(mixture.templates, field="data.mixture.templates"), source=source)
    source = f"data.train={data.train}"
    training, unseen = split_clusters(group_tasks(train, source=source), mixture, source=source)
    demonstrations = mix(training, templates, mixture, seed=config.seed, on_bad_row=data.on_bad_row)
    told: list[dict[str, str]] = []
    skipped: list[str] = []
    if held_out:
        source = f"data.eval={data.eval}"
        known, unseen = split_clusters(group_tasks(held_out, source=source), mixture, source=source)
        told, skipped = told_once(known, templates, seed=config.seed, on_bad_row=data.on_bad_row)
    questions = [questions_of(task, mixture, on_bad_row=data.on_bad_row) for task in unseen]
    asked = HeldOutTasks(questions, mixture.evaluation, seed=config.seed) if questions else None
    return SftRows(
        demonstrations.rows, told, demonstrations.examples, asked, [*demonstrations.skipped, *skipped]
    )  # fmt: skip
