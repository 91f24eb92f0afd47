"""What a learned reward model must beat: length, bag-of-words Bradley-Terry, unigram naive Bayes.

Owns the trivial models (scikit-learn) and their training on comparisons or labelled texts. Accuracy, interval and the
lead of one model over another are `reward.evaluation`.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import MultinomialNB

from reward.evaluation import evaluate_scores
from reward.length_bias import word_counts
from reward.preferences import Comparison

Array = NDArray[np.float64]
TextScorer = Callable[[Sequence[str]], Array]
"""Responses -> (B,) scores."""

_WORD = r"(?u)\b\w+\b"


def baseline_scores(train: Sequence[Comparison], held_out: Sequence[Comparison]) -> dict[str, Array]:
    """(S,) scores of the held-out responses by each trivial model, trained on `train`. They see no prompts."""
    responses = [response for comparison in held_out for response in comparison.responses]
    scorers = {
        "length": length_scorer(train),
        "bag_of_words": bag_of_words_scorer(train),
        "naive_bayes": naive_bayes_scorer(*_as_labelled(train)),
    }
    return {name: scorer(responses) for name, scorer in scorers.items()}


def length_scorer(train: Sequence[Comparison]) -> TextScorer:
    """Number of words, or its negative where the shorter response wins more often in training."""
    texts = [response for comparison in train for response in comparison.responses]
    sign = 1.0 if evaluate_scores(train, word_counts(texts)).accuracy >= 0.5 else -1.0
    return lambda responses: sign * word_counts(responses)


def bag_of_words_scorer(train: Sequence[Comparison]) -> TextScorer:
    """Score w . counts(response), with w from Bradley-Terry: logistic regression on count differences, default L2."""
    texts = [response for comparison in train for response in comparison.responses]
    if not _have_words(texts):
        return _constant
    vectorizer = CountVectorizer(token_pattern=_WORD)
    counts: Any = vectorizer.fit_transform(texts)
    winners, losers, weights = _pair_rows(train)
    # Every pair stands there in both directions, because a classifier wants to see both classes.
    differences = counts[winners + losers] - counts[losers + winners]
    model = LogisticRegression(fit_intercept=False, max_iter=1000)
    model.fit(differences, np.repeat([1, 0], len(winners)), sample_weight=np.tile(weights, 2))
    return lambda responses: model.decision_function(vectorizer.transform(responses))


def naive_bayes_scorer(texts: Sequence[str], preferred: Sequence[bool]) -> TextScorer:
    """Log-odds log P(preferred | words) - log P(not preferred | words) of a unigram naive Bayes, add-one smoothing."""
    if not _have_words(texts):
        return _constant
    vectorizer = CountVectorizer(token_pattern=_WORD)
    model = MultinomialNB().fit(vectorizer.fit_transform(texts), np.asarray(preferred, dtype=np.int64))

    def score(responses: Sequence[str]) -> Array:
        joint: Any = model.predict_joint_log_proba(vectorizer.transform(responses))
        return joint[:, 1] - joint[:, 0]

    return score


def _have_words(texts: Sequence[str]) -> bool:
    """Whether there is anything to count: responses may be signs and symbols only."""
    return any(re.search(_WORD, text) for text in texts)


def _constant(responses: Sequence[str]) -> Array:
    """What is known from no words: all responses are alike."""
    return np.zeros(len(responses))


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
