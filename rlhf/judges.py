"""Reward functions that learn from a data file when a process first calls them: judges, by `module:function`.

Owns the reading of their data; the models themselves are `reward.baselines`.
"""

from collections.abc import Sequence
from functools import cache

from reward.baselines import TextScorer, naive_bayes_scorer
from reward.config import LabelledTextFormat
from reward.preferences import read_labelled_text
from reward.row_fields import RowReader
from rlhf.data import load_rows


def naive_bayes(
    prompts: Sequence[str],  # noqa: ARG001 - the calling convention of reward functions
    responses: Sequence[str],
    *,
    data: str,
    text_field: str = "text",
    label_field: str = "label",
) -> list[float]:
    """Log-odds of label 1 by a unigram naive Bayes on labelled texts: it shares nothing with a neural reward model.

    Args:
        prompts: Not read.
        responses: Texts to judge.
        data: Source of the training rows, as in `data.train`.
        text_field: Column of the text.
        label_field: Column of the label, 0 or 1.

    Raises:
        ValueError: the data cannot be read, or lacks one of the labels.
    """
    return _trained(data, text_field, label_field)(responses).tolist()


@cache
def _trained(data: str, text_field: str, label_field: str) -> TextScorer:
    format = LabelledTextFormat(text_field=text_field, label_field=label_field)
    rows = load_rows(data, field="arguments.data")
    labelled = RowReader(f"data={data}", "error").read(rows, lambda row, _: read_labelled_text(row, format))
    texts, preferred = zip(*labelled, strict=True)
    if len(set(preferred)) < 2:
        raise ValueError(f"data={data}: all texts have one label; a judge needs both: check the file and its slice")
    return naive_bayes_scorer(texts, preferred)
