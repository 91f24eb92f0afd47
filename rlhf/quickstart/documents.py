"""Pretraining documents of the quickstart world: tales, lessons and gossip, about 30 to 75 words each.

They teach the words, that a fact stays true from the first sentence of a text to the last, and the manners, good and
bad, that the writers of answers will use. The prompt format (`question:` / `answer:`) is left for fine-tuning.
"""

import random
from collections.abc import Callable

from rlhf.quickstart import vocabulary
from rlhf.quickstart.grammar import Scene, Split, sample_scene, tell
from rlhf.quickstart.questions import pose
from rlhf.quickstart.writers import Style, write


def sample_document(rng: random.Random, split: Split) -> str:
    """Draw a pretraining document about a scene of `split`: a tale (30 %), a lesson (55 %) or gossip (15 %)."""
    kinds: tuple[Callable[[Scene, random.Random], str], ...] = (tale, lesson, gossip)
    (kind,) = rng.choices(kinds, weights=(30, 55, 15))
    return kind(sample_scene(rng, split), rng)


def tale(scene: Scene, rng: random.Random) -> str:
    """A story that goes on for two to four sentences, all of them about facts already told."""
    visit = rng.choice(scene.visits)
    sentences = (
        f"{visit.name} the {visit.kind} stayed at the {visit.place} and sang about the {visit.thing}.",
        f"everyone at the {visit.place} looked at the {visit.colour} {visit.thing}.",
        f"all the while {scene.reason.clause}.",
        f"a friend asked for the {visit.thing}, but {visit.name} kept it.",
        f"{visit.name} said: i came because {scene.reason.clause}.",
        f"in the end, {visit.name} left the {visit.thing} at the {visit.place}.",
    )
    kept = sorted(rng.sample(range(len(sentences)), rng.randint(2, 4)))
    return " ".join([tell(scene, rng), *(sentences[index] for index in kept)])


def lesson(scene: Scene, rng: random.Random) -> str:
    """A story and two questions about it, each answered truly and plainly, with and without the reason."""
    story = tell(scene, rng)
    exchanges = []
    for _ in range(2):
        question = pose(scene, story, rng)
        style = Style(
            opening="plain", fact="right", reason=rng.choice(("true", "none")), shape="sentence", closing="none"
        )
        exchanges.append(f"the teacher asked: {question.text} the pupil said: {write(question, style, rng)}")
    return " ".join([story, *exchanges])


def gossip(scene: Scene, rng: random.Random) -> str:
    """Three villagers, each speaking as their manner is: kindly, rudely, at length or not to the point."""
    manners = {
        "kind": (*vocabulary.WARM_OPENINGS, *vocabulary.WARM_CLOSINGS),
        "rude": (*vocabulary.RUDE_OPENINGS, *vocabulary.RUDE_CLOSINGS),
        "chatty": vocabulary.RAMBLES,
        "forgetful": (
            "it is somewhere or other.",
            "somebody has something or other.",
            "it is here, i say, it is here.",
        ),
    }
    names = [scene.visits[0].name, *rng.sample(vocabulary.NAMES, 3)]
    speakers = list(dict.fromkeys(names))[:3]
    lines = []
    for name in speakers:
        manner = rng.choice(tuple(manners))
        lines.append(f"{name}, who was {manner}, said: {rng.choice(manners[manner])}")
    return " ".join([f"{rng.choice(vocabulary.OPENINGS)} {scene.reason.clause}.", *lines])
