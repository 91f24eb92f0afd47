"""Questions about a scene: the three things one can ask, the prompt they make, and the way back from prompt to facts.

A prompt is the story, one question and an open answer line; the answer is to be found in the story:

    today, mia the otter took a red kite to the mill because the moon was bright.
    question: where is mia?
    answer:
"""

import hashlib
import random
from dataclasses import dataclass
from typing import Literal

from rlhf.quickstart.grammar import Reason, Scene, Visit, read_scene, tell, words_of

Asked = Literal["name", "thing", "place"]
Told = Literal["thing", "place"]

_QUESTION_MARK = "\nquestion: "
_ANSWER_MARK = "\nanswer:"
_WORDINGS: tuple[tuple[Asked, Told, str], ...] = (
    ("place", "place", "where is {visit.name}?"),
    ("place", "place", "where did {visit.name} go?"),
    ("thing", "thing", "what does {visit.name} have?"),
    ("thing", "thing", "what did {visit.name} bring?"),
    ("name", "place", "who is at the {visit.place}?"),
    ("name", "thing", "who has the {visit.thing}?"),
)
_ASKED_BY_WORD: dict[str, Asked] = {"who": "name", "what": "thing", "where": "place"}


@dataclass(frozen=True, slots=True)
class Question:
    """One question about one visit of one story.

    Attributes:
        story: The story as the model reads it.
        text: The question as the model reads it, e.g. "where is mia?".
        asked: Which fact of `visit` is the answer.
        told: Which fact a full-sentence answer states: "place" ("mia is at the mill") or "thing" ("mia has the kite").
        visit: The visit asked about.
        reason: The reason the story gives.
    """

    story: str
    text: str
    asked: Asked
    told: Told
    visit: Visit
    reason: Reason

    @property
    def prompt(self) -> str:
        """The text given to the model; a completion starts with a space."""
        return f"{self.story}{_QUESTION_MARK}{self.text}{_ANSWER_MARK}"

    @property
    def id(self) -> str:
        """Twelve hexadecimal digits that depend on the prompt's text alone."""
        return hashlib.sha1(self.prompt.encode(), usedforsecurity=False).hexdigest()[:12]

    @property
    def answer(self) -> str:
        """The one word that answers the question."""
        return getattr(self.visit, self.asked)


def ask(scene: Scene, rng: random.Random) -> Question:
    """Tell `scene` and ask, in one of several wordings, for one fact of one of its visits."""
    return pose(scene, tell(scene, rng), rng)


def pose(scene: Scene, story: str, rng: random.Random) -> Question:
    """Ask for one fact of one visit of `scene`, which `story` tells."""
    visit = rng.choice(scene.visits)
    asked, told, wording = rng.choice(_WORDINGS)
    text = wording.format(visit=visit)
    return Question(story=story, text=text, asked=asked, told=told, visit=visit, reason=scene.reason)


def question_from_prompt(prompt: str) -> Question:
    """Read a prompt back: `question_from_prompt(q.prompt) == q` for every question `q` of this world.

    Raises:
        ValueError: If `prompt` is not a prompt of this world.
    """
    story, found, rest = prompt.partition(_QUESTION_MARK)
    text, closed, tail = rest.partition(_ANSWER_MARK)
    words = words_of(text)
    if not (found and closed and words and words[0] in _ASKED_BY_WORD) or tail.strip():
        form = f"<story>{_QUESTION_MARK}<where, what or who ...?>{_ANSWER_MARK}"
        raise ValueError(f"prompt={prompt!r} is not a prompt of the quickstart world: use {form!r}")
    scene = read_scene(story)
    clue = frozenset(words)
    for visit in scene.visits:
        if clue & {visit.name, visit.thing, visit.place}:
            asked = _ASKED_BY_WORD[words[0]]
            told = asked if asked != "name" else ("place" if visit.place in clue else "thing")
            return Question(story=story, text=text, asked=asked, told=told, visit=visit, reason=scene.reason)
    raise ValueError(
        f"question={text!r} names nobody and nothing of its story: ask about a name, thing or place in {story!r}"
    )
