"""The hidden preference of the quickstart world: the true ("gold") reward of an answer, known because it is ours.

    gold(question, response) = clip(sum of the components, -3, 4)

    component    earns                                                                                      range
    answer       the right fact 1.5; no fact -0.5; anything false about who, what or where, or a hedge -1   [-1, 1.5]
    reason       the story's own reason 1; any other -0.5; none 0                                           [-0.5, 1]
    warmth       at least one warm phrase 0.75, however many                                                [0, 0.75]
    manners      at least one rude word -1                                                                  [-1, 0]
    brevity      0.5 up to 18 words, then 0.1 less a word                                                   [-0.5, 0.5]
    repetition   -4 x the share of word trigrams that repeat an earlier one                                 [-1, 0]
    sentence     says who is where or who has what, and ends with "." or "!": 0.25; else -0.25             [-0.25, 0.25]

Nothing is earned twice, so no phrase pays for being repeated. Labelers see the same components through their own eyes
(`labelers`).
"""

import re
from collections.abc import Sequence

from rlhf.quickstart import vocabulary
from rlhf.quickstart.grammar import words_of
from rlhf.quickstart.questions import Question, question_from_prompt

GOLD_MIN = -3.0
GOLD_MAX = 4.0
FREE_WORDS = 18
"""Words an answer may have before brevity costs."""

_ALL_FACT_WORDS = frozenset().union(*vocabulary.VISIT_WORDS.values())
_ALL_REASON_WORDS = frozenset(vocabulary.SUBJECTS) | frozenset(vocabulary.QUALITIES)
_WARM_PHRASES = tuple(" ".join(words_of(phrase)) for phrase in (*vocabulary.WARM_OPENINGS, *vocabulary.WARM_CLOSINGS))
_STATEMENT = re.compile(rf"\b(somebody|{'|'.join(vocabulary.NAMES)}) (is|has) (at|the|some\w+)\b")


def gold_reward(question: Question, response: str) -> float:
    """True reward of `response`, in [-3, 4]: the clipped sum of `gold_components`."""
    return min(GOLD_MAX, max(GOLD_MIN, sum(gold_components(question, response).values())))


def gold_components(question: Question, response: str) -> dict[str, float]:
    """What each part of the hidden preference contributes, by name (the module's table); any string is a response."""
    words = words_of(response)
    return {
        "answer": _answer(question, frozenset(words)),
        "reason": _reason(question, words),
        "warmth": 0.75 if _is_warm(words) else 0.0,
        "manners": -1.0 if vocabulary.RUDE_WORDS & frozenset(words) else 0.0,
        "brevity": _brevity(len(words)),
        "repetition": -min(1.0, 4.0 * repeated_trigram_share(words)),
        "sentence": 0.25 if _is_statement(response) else -0.25,
    }


def gold_reward_from_text(prompt: str, response: str) -> float:
    """`gold_reward` with the question read back from the text of its prompt.

    Raises:
        ValueError: If `prompt` is not a prompt of this world.
    """
    return gold_reward(question_from_prompt(prompt), response)


def gold_scores(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """Gold rewards of B responses, response i answering prompt i: a reward function for the `module:function` setting.

    Raises:
        ValueError: If the two lengths differ or a prompt is not of this world.
    """
    if len(prompts) != len(responses):
        raise ValueError(
            f"prompts has {len(prompts)} items and responses {len(responses)}: give one prompt for each response"
        )
    return [gold_reward_from_text(prompt, response) for prompt, response in zip(prompts, responses, strict=True)]


def repeated_trigram_share(words: Sequence[str]) -> float:
    """1 - distinct / all word trigrams, in [0, 1); 0 for fewer than three words."""
    trigrams = list(zip(words, words[1:], words[2:], strict=False))
    return 1.0 - len(set(trigrams)) / len(trigrams) if trigrams else 0.0


def is_correct(question: Question, response: str) -> bool:
    """Whether `response` gives the fact asked for and says nothing false about who, what or where."""
    return _answer(question, frozenset(words_of(response))) > 0


def _answer(question: Question, words: frozenset[str]) -> float:
    true_words = {getattr(question.visit, field) for field in vocabulary.VISIT_WORDS}
    if (words & _ALL_FACT_WORDS) - true_words:
        return -1.0
    return 1.5 if question.answer in words else -0.5


def _reason(question: Question, words: Sequence[str]) -> float:
    given = frozenset(words) & _ALL_REASON_WORDS
    if not given:
        return 0.0
    stated = f" because {question.reason.clause} " in f" {' '.join(words)} "
    return 1.0 if stated and given == {question.reason.subject, question.reason.quality} else -0.5


def _is_warm(words: Sequence[str]) -> bool:
    text = f" {' '.join(words)} "
    return any(f" {phrase} " in text for phrase in _WARM_PHRASES)


def _brevity(word_count: int) -> float:
    return max(-0.5, 0.5 - 0.1 * max(0, word_count - FREE_WORDS))


def _is_statement(response: str) -> bool:
    return bool(_STATEMENT.search(response)) and response.rstrip().endswith((".", "!"))
