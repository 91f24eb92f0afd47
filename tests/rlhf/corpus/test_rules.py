"""Each rule of `rlhf corpus` on texts whose measures were worked by hand, in several languages."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf.corpus.c4_rules import bad_word_pattern, cleaning_rules, ends_a_sentence, read_bad_words, sentence_count_rule
from rlhf.corpus.cleaning import Cleaning, build_rules
from rlhf.corpus.config import C4Rules, CorpusConfig, QualityRules, RepetitionRules
from rlhf.corpus.duplicates import ExactDuplicates, RepeatedSpans
from rlhf.corpus.quality_rules import (
    alphabetic_words,
    bullet_lines,
    ellipsis_lines,
    mean_word_length,
    quality_rules,
    symbol_ratio,
)
from rlhf.corpus.repetition_rules import repeated_ngram_share, repeated_share, repetition_rules, top_ngram_share
from rlhf.corpus.segments import sentences_of, words_of

OFF = C4Rules(
    citation_markers=False,
    terminal_punctuation=False,
    min_words_per_line=None,
    line_phrases=(),
    document_phrases=(),
    braces=False,
    repeated_spans=False,
    min_sentences=None,
)


def after(text: str, **changes: object) -> str:
    """What the single cleaning rule that `changes` turns on leaves of a text."""
    (rule,) = cleaning_rules(OFF.model_copy(update=changes))
    return rule.apply(text)


def test_words_are_parted_by_spaces_and_in_scripts_without_them_are_characters() -> None:
    assert words_of("A  small\tcat.") == ["A", "small", "cat."]
    assert words_of("猫は GPU を使う") == ["猫", "は", "GPU", "を", "使", "う"]


def test_sentences_end_at_final_marks_of_any_script_and_with_their_line() -> None:
    assert sentences_of('He said "Go." Then 3.5 km\nof rain! …') == ['He said "Go."', "Then 3.5 km", "of rain!"]
    assert sentences_of("今日は雨。猫はねる。") == ["今日は雨。", "猫はねる。"]
    assert sentences_of("„Nein.“ Er ging. Ende") == ["„Nein.“", "Er ging.", "Ende"]


@pytest.mark.parametrize(
    "line",
    ["The end.", "Really?", "Go!)", 'He said "no"', "她笑了。", "Er sagte: „ja“", "وہ گیا۔", "राम गया।"],  # noqa: RUF001 - marks of other scripts
)
def test_a_line_that_ends_a_sentence_stays(line: str) -> None:
    assert ends_a_sentence(line)


@pytest.mark.parametrize("line", ["Home | About", "Read more", "- item", "Price: 3", "(see below)", "the boys'"])
def test_a_line_without_a_final_mark_goes(line: str) -> None:
    assert after(f"The first one.\n{line}\nThe last one.", terminal_punctuation=True) == "The first one.\nThe last one."


def test_citation_markers_go_and_other_brackets_stay() -> None:
    text = "Lobsters swim[1] far.[citation needed] See [a].[edit]"
    assert after(text, citation_markers=True) == "Lobsters swim far. See [a]."


def test_short_lines_go_by_words() -> None:
    assert after("one two three four.\none two three four five.", min_words_per_line=5) == "one two three four five."


def test_lines_with_a_phrase_go_in_any_case_and_a_document_of_nothing_else_is_dropped() -> None:
    phrases = ("javascript", "use of cookies")
    assert after("Enable JavaScript.\nA cat sat.", line_phrases=phrases) == "A cat sat."
    assert after("We make Use Of Cookies.", line_phrases=phrases) == ""


@pytest.mark.parametrize(("change", "text"), [
    ({"document_phrases": ("lorem ipsum",)}, "A cat sat.\nLorem Ipsum dolor."),
    ({"braces": True}, "A cat sat.\nint f() { return 1; }"),
])  # fmt: skip
def test_documents_with_a_placeholder_or_code_go_whole(change: dict[str, object], text: str) -> None:
    assert after(text, **change) == ""
    assert after("A cat sat.", **change) == "A cat sat."


def test_bad_words_count_as_whole_words_except_in_scripts_without_spaces(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_text("darn\n\nholy cow\n馬鹿\n", encoding="utf-8")
    pattern = bad_word_pattern(read_bad_words(str(path)))
    assert [bool(pattern.search(text)) for text in ("Darn!", "he darned it", "HOLY COW.", "君は馬鹿だ")] == [
        True, False, True, True
    ]  # fmt: skip


def test_a_missing_or_empty_file_of_bad_words_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n")
    for name, wrong in (("none.txt", "cannot be read"), ("empty.txt", "holds no word")):
        with pytest.raises(ValueError, match=rf"c4\.bad_words=.*{name}: {wrong}"):
            cleaning_rules(OFF.model_copy(update={"bad_words": str(tmp_path / name)}))


def test_documents_of_fewer_sentences_go() -> None:
    rule = sentence_count_rule(3)
    assert rule.apply("One. Two.") == ""
    assert rule.apply("One. Two.\nThree") == "One. Two.\nThree"


def test_quality_measures_by_hand() -> None:
    assert mean_word_length("a bcd 猫") == 2.0
    assert mean_word_length("猫猫") is None
    assert symbol_ratio("# a # b ...") == pytest.approx(2 / 5)
    assert symbol_ratio("a... b… c...") == pytest.approx(1.0)
    assert bullet_lines("- a\n\n• b\nc\nd") == 0.5
    assert ellipsis_lines("a...\nb…\nc.\n") == pytest.approx(2 / 3)
    assert alphabetic_words("x2 3 ++ größe") == 0.5


@pytest.mark.parametrize(("change", "dropped", "kept"), [
    ({"min_words": 3}, "a b", "a b c"),
    ({"max_words": 3}, "a b c d", "a b c"),
    ({"min_mean_word_length": 2.5}, "ab ab", "abc ab"),
    ({"max_mean_word_length": 2.5}, "abc abc", "abc ab"),
    ({"max_symbol_ratio": 0.1}, "# " + "w " * 8, "# " + "w " * 9),
    ({"max_bullet_lines": 0.5}, "- a\n- b\nc", "- a\nb"),
    ({"max_ellipsis_lines": 0.3}, "a...\nb\nc", "a...\nb\nc\nd"),
    ({"min_alphabetic_words": 0.8}, "a b c 1", "a b c d 1"),
    ({"stop_words": ("der", "und")}, "der Hund", "Der Hund, und er"),
])  # fmt: skip
def test_each_bound_of_quality_drops_what_is_beyond_it_and_keeps_what_is_on_it(
    change: dict[str, object], dropped: str, kept: str
) -> None:
    off = dict.fromkeys(("min_words", "max_words", "min_mean_word_length", "max_mean_word_length", "max_symbol_ratio",
                         "max_bullet_lines", "max_ellipsis_lines", "min_alphabetic_words"))  # fmt: skip
    (rule,) = quality_rules(QualityRules.model_validate(off | change))
    assert (rule.apply(dropped), rule.apply(kept)) == ("", kept)


def test_repetition_measures_by_hand() -> None:
    assert repeated_share(["a", "bbb", "a", "a"]) == 0.5
    assert repeated_share(["a", "bbb", "a", "a"], by_characters=True) == pytest.approx(2 / 6)
    # "a bb" occurs twice and covers 6 of 10 characters; "bb a" once.
    words = ["a", "bb", "a", "bb", "cccc"]
    assert top_ngram_share(words, 2) == pytest.approx(0.6)
    assert top_ngram_share(["a", "b", "c"], 2) == 0.0
    # Overlapping occurrences of "x x" cover each x once.
    assert repeated_ngram_share(["x", "x", "x", "yyy"], 2) == pytest.approx(0.5)


def test_repetition_rules_have_the_bounds_of_the_paper_and_can_be_off() -> None:
    names = [rule.name for rule in repetition_rules(RepetitionRules())]
    assert names[:4] == [f"repetition.duplicate_{part}"
                         for part in ("lines", "line_characters", "paragraphs", "paragraph_characters")]  # fmt: skip
    assert names[4:] == [*(f"repetition.top_ngrams.{n}" for n in (2, 3, 4)),
                         *(f"repetition.duplicate_ngrams.{n}" for n in range(5, 11))]  # fmt: skip
    off = RepetitionRules(duplicate_lines=None, duplicate_line_characters=None, duplicate_paragraphs=None,
                          duplicate_paragraph_characters=None, top_ngrams={}, duplicate_ngrams={})  # fmt: skip
    assert repetition_rules(off) == []
    lines = {rule.name: rule for rule in repetition_rules(RepetitionRules())}["repetition.duplicate_lines"]
    assert lines.apply("a\nb\na\nc") == "a\nb\na\nc"
    assert lines.apply("a\nb\na\nb") == ""


def test_exact_duplicates_differ_by_case_and_white_space_only_and_count_once_kept() -> None:
    rule = ExactDuplicates()
    assert rule.apply("A cat  sat.") != ""
    assert rule.apply("a CAT\nsat.") != "", "the first one was not kept"
    rule.keep()
    assert rule.apply("A cat sat.") == ""
    assert rule.apply("A cat sat!") != ""


def test_repeated_spans_of_three_sentences_go_from_later_documents() -> None:
    rule = RepeatedSpans()
    first = "Ann ran. Bob sat.\nCid hid. Dan dug."
    assert rule.apply(first) == first
    rule.keep()
    # Bob-Cid-Dan is a span of the first document, Dan-Eve-Fay is not: three sentences go, the rest stays.
    assert rule.apply("New one. Bob sat. Cid hid. Dan dug. Eve ate.\nFay fed.") == "New one. Eve ate.\nFay fed."
    assert rule.apply("Bob sat. Cid hid.") == "Bob sat. Cid hid.", "two sentences are no span"
    assert rule.apply(first.lower()) == ""


def test_a_span_of_a_document_that_was_not_kept_is_not_remembered() -> None:
    rule = RepeatedSpans()
    text = "Ann ran. Bob sat. Cid hid."
    rule.apply(text)
    assert rule.apply(text) == text


def test_near_duplicates_go_from_the_estimated_similarity_on() -> None:
    pytest.importorskip("datasketch", reason="needs the extra `corpus`")
    words = [f"w{number}" for number in range(200)]
    near, far = words.copy(), words.copy()
    near[100] = "other"  # 191 of 201 different 5-grams are common: 0.95.
    far[::10] = ["x"] * 20  # 100 of 296: 0.33.
    config = CorpusConfig.model_validate(
        {"run_dir": "r", "data": {"train": "t"}, "c4": None, "near_duplicates": {"threshold": 0.8}}
    )
    cleaning = Cleaning(build_rules(config), examples_per_rule=0)
    kept = [bool(cleaning.clean(" ".join(text), row=0)) for text in (words, near, far)]
    assert kept == [True, False, True]
    assert [(tally.rule, tally.documents_dropped) for tally in cleaning.tallies] == [
        ("exact_duplicates", 0), ("near_duplicates", 1)
    ]  # fmt: skip


@given(st.lists(st.text(alphabet="ab .!\n[]{}1#-", max_size=80), max_size=12))
def test_bytes_that_rules_removed_and_bytes_that_stay_are_all_bytes(texts: list[str]) -> None:
    config = CorpusConfig.model_validate({
        "run_dir": "r", "data": {"train": "t"}, "c4": {"min_words_per_line": 2, "min_sentences": 1},
        "quality": {"min_words": 2}, "repetition": {},
    })  # fmt: skip
    cleaning = Cleaning(build_rules(config), examples_per_rule=1)
    kept = [cleaning.clean(text, row=row) for row, text in enumerate(texts)]
    removed = sum(tally.bytes_removed for tally in cleaning.tallies)
    assert removed + cleaning.bytes_after == cleaning.bytes_before == sum(map(len, texts))
    assert cleaning.kept_documents == sum(bool(text) for text in kept)
    assert all(tally.bytes_removed >= 0 for tally in cleaning.tallies)
