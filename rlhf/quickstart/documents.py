"""Pretraining documents of the quickstart world: lessons, tales, songs and gossip, 20 to 75 words each.

They teach the words, that a fact stays true from the first sentence of a text to the last, and the manners, good and
bad, that the writers of answers will use. The prompt format (`question:` / `answer:`) is left for fine-tuning.
"""

import random
from collections.abc import Callable

from rlhf.quickstart import vocabulary
from rlhf.quickstart.grammar import Scene, Split, sample_scene, tell
from rlhf.quickstart.questions import Question, pose
from rlhf.quickstart.writers import ReasonGiven, Style, write

_PHRASES_BY_MANNER = {
    "kind": (*vocabulary.WARM_OPENINGS, *vocabulary.WARM_CLOSINGS),
    "rude": (*vocabulary.RUDE_OPENINGS, *vocabulary.RUDE_CLOSINGS),
    "chatty": vocabulary.RAMBLES,
    "forgetful": ("it is somewhere or other.", "somebody has something or other.", "it is here, i say, it is here."),
}


def sample_document(rng: random.Random, split: Split) -> str:
    """Draw a document about a scene of `split`: a lesson (45 %), a tale (25 %), a song (20 %) or gossip (10 %)."""
    kinds: tuple[Callable[[Scene, random.Random], str], ...] = (lesson, tale, song, gossip)
    (kind,) = rng.choices(kinds, weights=(45, 25, 20, 10))
    return kind(sample_scene(rng, split), rng)


def lesson(scene: Scene, rng: random.Random) -> str:
    """A story and two different questions about it, each answered truly and plainly, with or without the reason."""
    story = tell(scene, rng)
    first = pose(scene, story, rng)
    second = pose(scene, story, rng)
    while second.text == first.text:
        second = pose(scene, story, rng)
    exchanges = (
        f"the teacher asked: {item.text} the pupil said: {_plain_truth(item, rng)}" for item in (first, second)
    )
    return " ".join([story, *exchanges])


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


def song(scene: Scene, rng: random.Random) -> str:
    """A song about one visit and the reason, with a refrain; what is sung twice teaches a young model to copy."""
    visit = scene.visits[0]
    who_or_what = rng.choice((f"{visit.name} the {visit.kind}", f"a {visit.colour} {visit.thing}"))
    lines = [who_or_what, f"down at the {visit.place}", scene.reason.clause]
    rng.shuffle(lines)
    verse = f"sing {', '.join(lines)}!"
    refrains = (f"{verse} {verse}", " ".join(f"{line}, oh, {line}!" for line in lines))
    return f"{verse} {rng.choice(refrains)}"


def gossip(scene: Scene, rng: random.Random) -> str:
    """Three villagers at the place of `scene`, speaking as their manner is: kindly, rudely, at length or vaguely."""
    lines = [f"{rng.choice(vocabulary.OPENINGS)} {scene.reason.clause} at the {scene.visits[0].place}."]
    for name in rng.sample(vocabulary.NAMES, 3):
        manner = rng.choice(tuple(_PHRASES_BY_MANNER))
        lines.append(f"{name}, who was {manner}, said: {rng.choice(_PHRASES_BY_MANNER[manner])}")
    return " ".join(lines)


def _plain_truth(question: Question, rng: random.Random) -> str:
    reason: ReasonGiven = rng.choice(("true", "none"))
    return write(question, Style(opening="plain", fact="right", reason=reason, shape="sentence", closing="none"), rng)
