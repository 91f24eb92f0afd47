"""What a learned reward model must beat: length, bag-of-words Bradley-Terry, unigram naive Bayes; and a judge of these.

Owns the trivial models (scikit-learn) and their training on comparisons or labelled texts. Accuracy and interval are
`reward.evaluation`.
"""

import re
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, cast

import datasets
import numpy as np
from numpy.typing import NDArray
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import MultinomialNB

from reward.config import LabelledTextFormat
from reward.evaluation import PairEvaluation, evaluate_scores
from reward.preferences import Comparison, read_labelled_text
from reward.row_fields import RowReader

Array = NDArray[np.float64]
TextScorer = Callable[[Sequence[str]], Array]
"""Responses -> (B,) scores."""

_SLICE = re.compile(r"\[?(?P<start>-?\d+%?)?:(?P<stop>-?\d+%?)?\]?")
_FILE = re.compile(r"(?P<path>.*?)(\[(?P<rows>[^\]]*)\])?")
_FORMATS = {"jsonl": "json", "json": "json", "csv": "csv", "parquet": "parquet"}


def evaluate_baselines(
    train: Sequence[Comparison], held_out: Sequence[Comparison], *, seed: int = 0
) -> dict[str, PairEvaluation]:
    """Each trivial model trained on `train` and measured on `held_out`, by name. They see responses, not prompts."""
    responses = [response for comparison in held_out for response in comparison.responses]
    scorers = {
        "length": length_scorer(train),
        "bag_of_words": bag_of_words_scorer(train),
        "naive_bayes": naive_bayes_scorer(*_as_labelled(train)),
    }
    return {name: evaluate_scores(held_out, scorer(responses), seed=seed) for name, scorer in scorers.items()}


def length_scorer(train: Sequence[Comparison]) -> TextScorer:
    """Number of words, or its negative where the shorter response wins more often in training."""

    def words(texts: Sequence[str]) -> Array:
        return np.array([len(text.split()) for text in texts], dtype=np.float64)

    texts = [response for comparison in train for response in comparison.responses]
    sign = 1.0 if evaluate_scores(train, words(texts), resamples=1).accuracy >= 0.5 else -1.0
    return lambda responses: sign * words(responses)


def bag_of_words_scorer(train: Sequence[Comparison]) -> TextScorer:
    """Score w . counts(response), with w from Bradley-Terry: logistic regression on count differences, default L2."""
    vectorizer = CountVectorizer(token_pattern=r"(?u)\b\w+\b")
    counts: Any = vectorizer.fit_transform([response for comparison in train for response in comparison.responses])
    winners, losers, weights = _pair_rows(train)
    # Every pair stands there in both directions, because a classifier wants to see both classes.
    differences = counts[winners + losers] - counts[losers + winners]
    model = LogisticRegression(fit_intercept=False, max_iter=1000)
    model.fit(differences, np.repeat([1, 0], len(winners)), sample_weight=np.tile(weights, 2))
    return lambda responses: model.decision_function(vectorizer.transform(responses))


def naive_bayes_scorer(texts: Sequence[str], preferred: Sequence[bool]) -> TextScorer:
    """Log-odds log P(preferred | words) - log P(not preferred | words) of a unigram naive Bayes, add-one smoothing."""
    vectorizer = CountVectorizer(token_pattern=r"(?u)\b\w+\b")
    model = MultinomialNB().fit(vectorizer.fit_transform(texts), np.asarray(preferred, dtype=np.int64))

    def score(responses: Sequence[str]) -> Array:
        joint: Any = model.predict_joint_log_proba(vectorizer.transform(responses))
        return joint[:, 1] - joint[:, 0]

    return score


def naive_bayes_judge(
    prompts: Sequence[str],  # noqa: ARG001 - the calling convention of reward functions
    responses: Sequence[str],
    *,
    data: str,
    text_field: str = "text",
    label_field: str = "label",
    rows: str = "all",
) -> list[float]:
    """Reward function: log-odds of label 1, by a naive Bayes trained, once in a process, on labelled texts.

    Args:
        prompts: Not read.
        responses: Texts to judge.
        data: Local .jsonl, .json, .csv or .parquet file (also .gz); a slice may follow, as in `x.jsonl[50%:]`.
        text_field: Column of the text.
        label_field: Column of the label, 0 or 1.
        rows: The slice, where it does not stand behind `data`: "all", or for instance "50%:" or ":1000".

    Raises:
        ValueError: the file cannot be read, or lacks one of the labels.
    """
    return _trained_judge(data, text_field, label_field, rows)(responses).tolist()


@cache
def _trained_judge(data: str, text_field: str, label_field: str, rows: str) -> TextScorer:
    format = LabelledTextFormat(text_field=text_field, label_field=label_field)
    selected = _read_rows(data, rows)
    labelled = RowReader(f"data={data}", "error").read(selected, lambda row, _: read_labelled_text(row, format))
    texts, preferred = zip(*labelled, strict=True)
    if len(set(preferred)) < 2:
        raise ValueError(f"data={data}: all texts have one label; a judge needs both: check the file and its slice")
    return naive_bayes_scorer(texts, preferred)


def _read_rows(data: str, rows: str) -> list[Any]:
    match = cast(re.Match[str], _FILE.fullmatch(data))
    path = Path(match["path"])
    kind = next((suffix[1:].lower() for suffix in reversed(path.suffixes) if suffix.lower() != ".gz"), "")
    if not path.is_file() or kind not in _FORMATS:
        raise ValueError(
            f"data={data}: no such .jsonl, .json, .csv or .parquet file; correct the path (example data is optional, "
            "and comes separately)"
        )
    loaded = datasets.load_dataset(_FORMATS[kind], data_files=str(path), split="train", streaming=True)
    everything = list(loaded)
    selection = match["rows"] or rows
    if selection == "all":
        return everything
    bounds = _SLICE.fullmatch(selection)
    if bounds is None:
        raise ValueError(f"rows={selection!r} is no slice; use `all`, or rows or percent such as `50%:`")
    start, stop = (_bound(bounds[name], len(everything)) for name in ("start", "stop"))
    return everything[start:stop]


def _bound(text: str | None, count: int) -> int | None:
    """A slice bound in rows; percentages round down, so `:50%` and `50%:` share nothing and leave nothing out."""
    if text is None:
        return None
    return int(text[:-1]) * count // 100 if text.endswith("%") else int(text)


def _as_labelled(comparisons: Sequence[Comparison]) -> tuple[list[str], list[bool]]:
    """Winners and losers of all pairs as texts of two classes, each text once for each side it was on."""
    sides = dict.fromkeys(
        (comparison.responses[index], is_winner)
        for comparison in comparisons
        for pair in comparison.pairs()
        for index, is_winner in zip(pair, (True, False), strict=True)
    )
    return [text for text, _ in sides], [is_winner for _, is_winner in sides]


def _pair_rows(comparisons: Sequence[Comparison]) -> tuple[list[int], list[int], Array]:
    """Rows of winner and loser among all responses, and weights that give each comparison the same say."""
    winners: list[int] = []
    losers: list[int] = []
    weights: list[float] = []
    start = 0
    for comparison in comparisons:
        pairs = comparison.pairs()
        winners += [start + winner for winner, _ in pairs]
        losers += [start + loser for _, loser in pairs]
        weights += [1.0 / len(pairs)] * len(pairs)
        start += len(comparison.responses)
    return winners, losers, np.array(weights)
