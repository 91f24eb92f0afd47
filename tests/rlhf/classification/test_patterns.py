"""Templates and words: what is accepted, which tokens come of it, and what is refused by name."""

from typing import Any

import pytest

from policies.tokenization import encode_prompt
from rlhf.classification.patterns import encode_runs, read_pattern
from rlhf.classification.verbalizer import answer_words, read_answers


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("It was {answer}", "{text} stands there 0 times"),
        ("{text} It was", "{answer} stands there 0 times"),
        ("{text} {text} It was {answer}", "{text} stands there 2 times"),
        ("{text} {answer} or {answer}", "{answer} stands there 2 times"),
        ("{text} was {answer} indeed", "nothing may follow {answer}"),
        ("{answer} {text}", "nothing may follow {answer}"),
        ("{text} {trigger} {answer}", "{trigger} stands there 1 times; 0 is allowed"),
        ("{text} {word} {answer}", "{word} is no slot"),
        ("{text} {answer", "expected '}'"),
    ],
)
def test_a_template_with_wrong_slots_is_refused(template: str, problem: str) -> None:
    with pytest.raises(ValueError, match="templates=") as caught:
        read_pattern(template, field="templates")
    assert problem in str(caught.value)


def test_white_space_before_the_answer_belongs_to_the_answer(tiny_tokenizer: Any) -> None:
    pattern = read_pattern("{text} on the {answer}", field="templates")
    assert pattern.gap == " "
    assert (
        encode_runs(pattern.runs("a cat"), tiny_tokenizer).tolist()
        == encode_prompt("a cat on the", tiny_tokenizer).tolist()
    )
    answers = read_answers({"0": ["bird"], "1": ["to", "and"]}, ["0", "1"], pattern, tiny_tokenizer)
    assert [tiny_tokenizer.decode(list(ids)) for ids in answers.token_ids] == [" bird", " to and"]


def test_braces_that_are_no_slot_stand_twice(tiny_tokenizer: Any) -> None:
    pattern = read_pattern("{{{text}}} {answer}", field="templates")
    assert encode_runs(pattern.runs("cat"), tiny_tokenizer).tolist() == encode_prompt("{cat}", tiny_tokenizer).tolist()


def test_triggers_stand_between_texts_as_tokens(tiny_tokenizer: Any) -> None:
    pattern = read_pattern("{text} {trigger} so {answer}", field="template", with_trigger=True).with_triggers((7, 8))
    ids = encode_runs(pattern.runs("cat"), tiny_tokenizer).tolist()
    first, last = encode_prompt("cat ", tiny_tokenizer).tolist(), tiny_tokenizer(" so", add_special_tokens=False)
    assert ids == [*first, 7, 8, *last["input_ids"]]


def test_a_word_of_several_tokens_is_refused_with_candidates_that_are_one(tiny_tokenizer: Any) -> None:
    pattern = read_pattern("{text} {answer}", field="templates")
    with pytest.raises(ValueError, match="'birds' of label '0' is 2 tokens") as caught:
        read_answers({"0": ["birds"], "1": ["and"]}, ["0", "1"], pattern, tiny_tokenizer)
    assert "'bird'" in str(caught.value)


def test_a_word_of_two_labels_is_refused(tiny_tokenizer: Any) -> None:
    pattern = read_pattern("{text} {answer}", field="templates")
    with pytest.raises(ValueError, match="'and' stands for the labels 'no' and 'yes'"):
        read_answers({"no": ["and"], "yes": ["and"]}, ["no", "yes"], pattern, tiny_tokenizer)


def test_the_vocabulary_offers_words_that_follow_the_pattern(tiny_tokenizer: Any) -> None:
    spaced = answer_words(read_pattern("{text} {answer}", field="templates"), tiny_tokenizer, shortest=3)
    assert "bird" in spaced.values()
    assert "cat" not in spaced.values()  # Only without a space is it a token of its own.
    assert all(tiny_tokenizer.decode([token]) == f" {word}" for token, word in spaced.items())
