import random

import pytest

from rlhf.quickstart.grammar import Reason, Scene, Visit, count_scenes, read_scene, sample_scene, tell, words_of

MIA = Visit(name="mia", kind="otter", colour="red", thing="kite", place="mill")
TOM = Visit(name="tom", kind="crow", colour="blue", thing="drum", place="pond")
MOON = Reason(subject="moon", quality="bright")


def test_a_story_written_by_hand_is_read_back_as_its_facts():
    story = (
        "today, mia the otter took a red kite to the mill and tom the crow went to the pond with a blue drum "
        "because the moon was bright."
    )
    assert read_scene(story) == Scene(visits=(MIA, TOM), reason=MOON)


@pytest.mark.parametrize("split", ["train", "eval"])
def test_every_telling_is_read_back_as_the_scene_it_tells(split):
    rng = random.Random(3)
    for _ in range(1000):
        scene = sample_scene(rng, split)
        assert read_scene(tell(scene, rng)) == scene


def test_stories_have_15_to_35_words():
    rng = random.Random(4)
    lengths = [len(words_of(tell(sample_scene(rng, "train"), rng))) for _ in range(1000)]
    assert min(lengths) >= 15
    assert max(lengths) <= 35


def test_a_scene_belongs_to_the_split_it_was_drawn_for_and_to_no_other():
    rng = random.Random(5)
    assert {sample_scene(rng, "eval").split for _ in range(50)} == {"eval"}
    assert {sample_scene(rng, "train").split for _ in range(200)} == {"train"}


def test_the_two_visits_of_a_scene_share_no_word():
    rng = random.Random(6)
    pairs = [scene.visits for scene in (sample_scene(rng, "train") for _ in range(500)) if len(scene.visits) == 2]
    assert pairs
    for first, second in pairs:
        assert not {first.name, first.kind, first.colour, first.thing, first.place} & {
            second.name,
            second.kind,
            second.colour,
            second.thing,
            second.place,
        }


def test_there_are_more_scenes_than_any_corpus_could_hold():
    assert count_scenes() > 10**12


def test_an_unknown_split_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"split='test'.*'train' or 'eval'"):
        sample_scene(random.Random(0), "test")  # pyright: ignore[reportArgumentType]  # the point of the test


@pytest.mark.parametrize(
    "story", ["", "mia the otter slept.", "the moon was bright.", "mia the otter took a red kite to the mill."]
)
def test_text_that_is_no_story_is_refused(story):
    with pytest.raises(ValueError, match="not a story of the quickstart world"):
        read_scene(story)
