"""Scenes of the quickstart world: what happened (`Scene`), how it is told (`tell`) and read back (`read_scene`).

A scene is one or two animals, each of whom takes one coloured thing to one place, and one reason for all of it:

    today, mia the otter took a red kite to the mill because the moon was bright.

Every scene belongs to exactly one split, decided by a hash of its first place and its reason, so no seed can leak a
held-out scene, or a text about one, into training. What is asked about a scene is in `questions`; the longer
pretraining texts are in `documents`.
"""

import math
import random
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rlhf.quickstart import vocabulary

Split = Literal["train", "eval"]

EVAL_SHARE = 10
"""About one pair of place and reason in this many is held out."""

SECOND_VISIT_PROBABILITY = 0.2
"""Share of scenes with two visits; to answer about one of them takes more than copying the only word of its kind."""

_WORD = re.compile(r"[a-z]+")


@dataclass(frozen=True, slots=True)
class Visit:
    """One animal at one place with one thing."""

    name: str
    kind: str
    colour: str
    thing: str
    place: str


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a scene happened; rendered as "the moon was bright"."""

    subject: str
    quality: str

    @property
    def clause(self) -> str:
        """The reason as a clause without "because"."""
        return f"the {self.subject} was {self.quality}"


@dataclass(frozen=True, slots=True)
class Scene:
    """The facts of one story: one or two visits with no entity in common, and the reason they share."""

    visits: tuple[Visit, ...]
    reason: Reason

    @property
    def split(self) -> Split:
        """The split that owns this scene: a function of the first place and the reason, which every document states."""
        key = f"{self.visits[0].place} {self.reason.clause}"
        return "eval" if zlib.crc32(key.encode()) % EVAL_SHARE == 0 else "train"


def words_of(text: str) -> list[str]:
    """The lower-case words of `text`, without punctuation."""
    return _WORD.findall(text.lower())


def sample_scene(rng: random.Random, split: Split) -> Scene:
    """Draw a scene that belongs to `split`.

    Args:
        rng: Source of randomness.
        split: "train" or "eval".

    Raises:
        ValueError: If `split` is neither.
    """
    if split not in ("train", "eval"):
        raise ValueError(f"split={split!r} is not known: use 'train' or 'eval'")
    while True:
        scene = _draw_scene(rng)
        if scene.split == split:
            return scene


def count_scenes() -> int:
    """Number of distinct scenes.

    With C_f words of fact f and R reasons: R x prod C_f scenes of one visit, each with prod (C_f - 1) second visits.
    """
    sizes = [len(words) for words in vocabulary.VISIT_WORDS.values()]
    reasons = len(vocabulary.SUBJECTS) * len(vocabulary.QUALITIES)
    return math.prod(sizes) * (1 + math.prod(size - 1 for size in sizes)) * reasons


def tell(scene: Scene, rng: random.Random) -> str:
    """Tell `scene` in one or two lower-case sentences of 15 to 35 words, in one of several wordings.

    Each fact word appears, for the first time, in the order of the visits; `read_scene` relies on it.
    """
    opening = rng.choice(vocabulary.OPENINGS)
    trips = " and ".join(_trip(visit, rng) for visit in scene.visits)
    clause = scene.reason.clause
    wordings = (
        f"{opening}, {trips} because {clause}.",
        f"{opening} {clause}, so {trips}.",
        f"{opening}, {trips}. it was because {clause}.",
    )
    return rng.choice(wordings)


def read_scene(story: str) -> Scene:
    """Read the facts back from a story that `tell` wrote.

    Raises:
        ValueError: If `story` does not hold the same number (one or two) of each kind of fact, and one reason.
    """
    words = words_of(story)
    columns = [_mentions(words, entities) for entities in vocabulary.VISIT_WORDS.values()]
    reason = [*_mentions(words, vocabulary.SUBJECTS), *_mentions(words, vocabulary.QUALITIES)]
    counts = {len(column) for column in columns}
    if len(counts) != 1 or not counts <= {1, 2} or len(reason) != 2:
        raise ValueError(f"story={story!r} is not a story of the quickstart world: use one that its `tell` wrote")
    return Scene(visits=tuple(Visit(*facts) for facts in zip(*columns, strict=True)), reason=Reason(*reason))


def _draw_scene(rng: random.Random) -> Scene:
    count = 2 if rng.random() < SECOND_VISIT_PROBABILITY else 1
    columns = [rng.sample(entities, count) for entities in vocabulary.VISIT_WORDS.values()]
    reason = Reason(rng.choice(vocabulary.SUBJECTS), rng.choice(vocabulary.QUALITIES))
    return Scene(visits=tuple(Visit(*facts) for facts in zip(*columns, strict=True)), reason=reason)


def _trip(visit: Visit, rng: random.Random) -> str:
    wordings = (
        f"{visit.name} the {visit.kind} took a {visit.colour} {visit.thing} to the {visit.place}",
        f"{visit.name} the {visit.kind} went to the {visit.place} with a {visit.colour} {visit.thing}",
        f"{visit.name} the {visit.kind} carried a {visit.colour} {visit.thing} to the {visit.place}",
    )
    return rng.choice(wordings)


def _mentions(words: Sequence[str], entities: Sequence[str]) -> list[str]:
    """The distinct `entities` among `words`, in order of first mention."""
    known = frozenset(entities)
    return list(dict.fromkeys(word for word in words if word in known))
