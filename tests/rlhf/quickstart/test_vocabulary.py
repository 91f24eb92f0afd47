import itertools

from rlhf.quickstart import vocabulary
from rlhf.quickstart.grammar import words_of

FACT_CLASSES = (*vocabulary.VISIT_WORDS.values(), vocabulary.SUBJECTS, vocabulary.QUALITIES)
PHRASES = (
    *vocabulary.OPENINGS,
    *vocabulary.WARM_OPENINGS,
    *vocabulary.WARM_CLOSINGS,
    *vocabulary.RUDE_OPENINGS,
    *vocabulary.RUDE_CLOSINGS,
    *vocabulary.RAMBLES,
)


def test_no_fact_word_is_listed_twice_in_its_class():
    for words in FACT_CLASSES:
        assert len(set(words)) == len(words)


def test_no_fact_word_belongs_to_two_classes():
    for left, right in itertools.combinations(FACT_CLASSES, 2):
        assert not set(left) & set(right)


def test_set_phrases_hold_no_fact_word():
    spoken = {word for phrase in PHRASES for word in words_of(phrase)}
    assert not spoken & {word for words in FACT_CLASSES for word in words}


def test_every_rude_phrase_holds_a_rude_word_and_no_other_phrase_does():
    rude = {*vocabulary.RUDE_OPENINGS, *vocabulary.RUDE_CLOSINGS}
    for phrase in PHRASES:
        assert bool(vocabulary.RUDE_WORDS & set(words_of(phrase))) == (phrase in rude)
