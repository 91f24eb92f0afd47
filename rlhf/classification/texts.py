"""Labelled rows: what a row must hold, and which of them are the shots."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reward.row_fields import BadRowError, RowReader, read_field
from rlhf.config.classify import ClassifyDataConfig
from rlhf.data import load_rows
from rollout.noise import keyed_generator


@dataclass(frozen=True, slots=True)
class LabelledText:
    """One row.

    Attributes:
        name: Number of the row in its source, by which it is known.
        text: What is classified.
        label: Index of its label.
    """

    name: str
    text: str
    label: int


@dataclass(frozen=True, slots=True)
class LabelledData:
    """Training and held-out texts, and one line for each bad row that was left out."""

    train: Sequence[LabelledText]
    held_out: Sequence[LabelledText]
    skipped: Sequence[str]


def read_labelled(config: ClassifyDataConfig, labels: Sequence[str], *, seed: int) -> LabelledData:
    """The rows of `data.train`, cut to the shots, and of `data.eval`.

    Raises:
        ValueError: a bad row, or fewer rows of a label than `shots_per_class`.
    """
    assert config.eval is not None, "the configuration was checked for held-out rows"
    train, skipped = _read(config, config.train, "data.train", labels)
    held_out, more = _read(config, config.eval, "data.eval", labels)
    if config.shots_per_class is not None:
        train = draw_shots(train, labels, config.shots_per_class, seed=seed, source=f"data.train={config.train}")
    return LabelledData(train, held_out, [*skipped, *more])


def draw_shots(
    texts: Sequence[LabelledText], labels: Sequence[str], shots: int, *, seed: int, source: str
) -> list[LabelledText]:
    """So many texts of each label, a function of seed and label, in the order of the source.

    Raises:
        ValueError: a label has fewer.
    """
    kept: set[str] = set()
    for index, label in enumerate(labels):
        own = [text for text in texts if text.label == index]
        if len(own) < shots:
            raise ValueError(
                f"data.shots_per_class={shots}: label {label!r} has {len(own)} rows in {source}; lower it, or give more"
            )
        order = keyed_generator("shots", seed, label).permutation(len(own))[:shots]
        kept |= {own[place].name for place in order}
    return [text for text in texts if text.name in kept]


def _read(
    config: ClassifyDataConfig, source: str, field: str, labels: Sequence[str]
) -> tuple[list[LabelledText], list[str]]:
    reader = RowReader(f"{field}={source}", config.on_bad_row)
    rows = enumerate(load_rows(source, field=field))
    texts = reader.read(rows, lambda numbered, _: _labelled_text(numbered[0], numbered[1], labels))
    return texts, reader.skipped


def _labelled_text(number: int, row: Mapping[str, Any], labels: Sequence[str]) -> LabelledText:
    text, label = read_field(row, "text"), str(read_field(row, "label"))
    if not isinstance(text, str) or not text.strip():
        raise BadRowError(f"text is {text!r}; a text of at least one character is needed")
    if label not in labels:
        raise BadRowError(f"label is {label!r}; allowed are {list(labels)}: add it to `labels`, or repair the row")
    return LabelledText(str(number), text, labels.index(label))
