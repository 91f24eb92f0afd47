import random

import pytest

from rlhf.quickstart import vocabulary
from rlhf.quickstart.documents import gossip, lesson, sample_document, song, tale
from rlhf.quickstart.grammar import read_scene, sample_scene, words_of
from rlhf.quickstart.questions import question_from_prompt
from rlhf.quickstart.world import demonstration_rows, stories


@pytest.mark.parametrize("kind", [tale, lesson])
def test_tales_and_lessons_state_no_fact_that_their_scene_does_not_hold(kind):
    rng = random.Random(1)
    for _ in range(300):
        scene = sample_scene(rng, "train")
        assert read_scene(kind(scene, rng)) == scene


@pytest.mark.parametrize("kind", [lesson, tale, song, gossip])
def test_the_first_place_and_reason_of_a_text_are_never_in_both_splits(kind):
    def settings(split):
        rng = random.Random(4)
        return {_first_place_and_reason(kind(sample_scene(rng, split), rng)) for _ in range(300)}

    train, held_out = settings("train"), settings("eval")
    assert len(held_out) > 50
    assert not train & held_out


def _first_place_and_reason(text):
    words = words_of(text)
    classes = (vocabulary.PLACES, vocabulary.SUBJECTS, vocabulary.QUALITIES)
    return tuple(next(word for word in words if word in known) for known in classes)


def test_a_song_sings_its_place_and_reason_at_least_twice():
    rng = random.Random(5)
    for _ in range(100):
        scene = sample_scene(rng, "train")
        text = song(scene, rng)
        assert text.count(f"down at the {scene.visits[0].place}") >= 2
        assert text.count(scene.reason.clause) >= 2


def test_gossip_has_three_different_speakers():
    rng = random.Random(2)
    for _ in range(100):
        text = gossip(sample_scene(rng, "train"), rng)
        assert text.count(", who was ") == 3
        assert len(set(words_of(text)) & set(vocabulary.NAMES)) == 3


def test_documents_have_20_to_75_words():
    rng = random.Random(3)
    lengths = [len(words_of(sample_document(rng, "train"))) for _ in range(2000)]
    assert min(lengths) >= 20
    assert max(lengths) <= 75


def test_a_few_hundred_distinct_words_and_pretraining_teaches_nearly_all_that_are_used():
    known = {word for text in stories(3000, seed=1) for word in words_of(text)}
    used = {word for row in demonstration_rows(2000, seed=1) for word in words_of(row["prompt"] + row["completion"])}
    assert 250 <= len(known | used) <= 450
    assert used - known <= {"answer"}


def test_documents_do_not_repeat():
    texts = stories(3000, seed=1)
    assert len(set(texts)) == len(texts)


def test_documents_never_hold_the_prompt_format():
    for text in stories(500, seed=2):
        with pytest.raises(ValueError, match="prompt="):
            question_from_prompt(text)
