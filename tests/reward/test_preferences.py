from typing import Any

import pytest

from reward.config import LabelledTextFormat, PairsFormat, RankingsFormat
from reward.preferences import Comparison, comparisons_from_rows

CHAT = [{"role": "user", "content": "who ran?"}]


def read(rows, format, tokenizer: Any = None, **options):
    return comparisons_from_rows(rows, format, tokenizer=tokenizer, source="data.train=x.jsonl", **options)


def answer(text):
    return [{"role": "assistant", "content": text}]


def test_a_ranking_gives_every_pair_that_is_not_a_tie():
    comparison = Comparison("", ("a", "b", "c", "d"), ((2,), (0, 1), (3,)), "")

    assert sorted(comparison.pairs()) == [(0, 3), (1, 3), (2, 0), (2, 1), (2, 3)]


def test_a_row_of_texts_becomes_a_comparison_in_which_chosen_wins():
    row = {"prompt": "the cat", "chosen": " sat", "rejected": " ran"}

    (comparison,) = read([row], PairsFormat()).comparisons

    assert comparison == Comparison("the cat", (" sat", " ran"), ((0,), (1,)), "data.train=x.jsonl, row 0")


def test_messages_are_rendered_with_the_chat_template(tiny_tokenizer):
    row = {"prompt": CHAT, "chosen": answer("the cat"), "rejected": answer("a dog")}

    (plain,) = read([row], PairsFormat(), tiny_tokenizer).comparisons
    (own,) = read([row], PairsFormat(), tiny_tokenizer, chat_template="{{ messages[0]['content'] }} =>").comparisons

    assert plain.prompt == "user: who ran?\nassistant:"
    assert own.prompt == "who ran? =>"
    assert plain.responses == ("the cat", "a dog")


def test_whole_conversations_share_their_first_turns_as_the_prompt(tiny_tokenizer):
    row = {"chosen": CHAT + answer("the cat"), "rejected": CHAT + answer("a dog")}

    (comparison,) = read([row], PairsFormat(), tiny_tokenizer).comparisons

    assert comparison.prompt == "user: who ran?\nassistant:"
    assert comparison.responses == ("the cat", "a dog")


@pytest.mark.parametrize("missing", [{}, {"prompt": None}])
def test_texts_without_a_prompt_are_compared_as_they_are(missing):
    (comparison,) = read([{"chosen": "good", "rejected": "bad", **missing}], PairsFormat()).comparisons

    assert comparison.prompt == ""


def test_ranked_responses_may_be_texts_or_objects_with_text():
    rows = [
        {"prompt": "p", "responses": ["a", "b", "c"], "ranking": [[2], [0, 1]]},
        {"prompt": "p", "responses": [{"text": "a", "score": 3}, {"text": "b"}], "ranking": [1, 0]},
    ]

    first, second = read(rows, RankingsFormat()).comparisons

    assert (first.responses, first.ranking) == (("a", "b", "c"), ((2,), (0, 1)))
    assert (second.responses, second.ranking) == (("a", "b"), ((1,), (0,)))


@pytest.mark.parametrize(
    ("source", "origin"), [("forum", "forum"), (7, "7"), (None, None), ("  ", None), (["a"], None)]
)
def test_a_row_may_say_where_it_came_from(source, origin):
    pair = {"chosen": "good", "rejected": "bad", "source": source}
    ranked = {"prompt": "p", "responses": ["a", "b"], "ranking": [0, 1], "source": source}

    assert read([pair], PairsFormat()).comparisons[0].origin == origin
    assert read([ranked], RankingsFormat()).comparisons[0].origin == origin


def test_ties_are_the_pairs_within_a_group():
    comparison = Comparison("", ("a", "b", "c", "d"), ((2,), (0, 3, 1)), "")

    assert comparison.ties() == [(0, 3), (0, 1), (3, 1)]


def test_rows_say_how_sure_and_how_strong_their_label_is():
    pair = {"prompt": "p", "chosen": "a", "rejected": "b", "weight": 2, "margin": 1.5, "win_probability": 0.8}
    ranking = {"prompt": "p", "responses": ["a", "b"], "ranking": [1, 0], "strengths": [-1, 3], "weight": 0.5}

    (sure,) = read([pair], PairsFormat()).comparisons
    (ranked,) = read([ranking], RankingsFormat()).comparisons

    assert (sure.weight, sure.strengths, sure.win_probability) == (2.0, (1.5, 0.0), 0.8)
    assert (ranked.weight, ranked.strengths, ranked.win_probability) == (0.5, (-1.0, 3.0), 1.0)


RANKED = {"prompt": "p", "responses": ["a", "b", "c"], "ranking": [[0], [1], [2]]}
PAIR = {"prompt": "p", "chosen": "a", "rejected": "b"}
LABELLED = {"text": "good", "label": 1}


@pytest.mark.parametrize(
    ("format", "row", "message"),
    [
        (PairsFormat(), {"prompt": "p", "rejected": "b"}, "field 'chosen' is missing"),
        (PairsFormat(), PAIR | {"rejected": None}, "field 'rejected' is null"),
        (PairsFormat(), PAIR | {"rejected": "a"}, "identical"),
        (PairsFormat(), PAIR | {"chosen": " \n"}, "field 'chosen' is empty"),
        (PairsFormat(), PAIR | {"chosen": 3}, "field 'chosen' is 3"),
        (PairsFormat(), PAIR | {"chosen": answer("a") * 2}, "field 'rejected' is 'b', but 'chosen' holds a dialogue"),
        (PairsFormat(), PAIR | {"prompt": [{"role": "user"}]}, "field 'prompt'"),
        (PairsFormat(), PAIR | {"margin": float("nan")}, "field 'margin' is nan"),
        (RankingsFormat(), RANKED | {"weight": -1}, "field 'weight' is -1"),
        (PairsFormat(), {"chosen": answer("a"), "rejected": "b"}, "field 'rejected' is 'b'"),
        (RankingsFormat(), RANKED | {"responses": ["a"]}, "at least 2"),
        (RankingsFormat(), RANKED | {"responses": ["a", "", "c"]}, r"field 'responses\[1\]' is empty"),
        (RankingsFormat(), RANKED | {"ranking": [[0], [1]]}, "each of 0..2 exactly once"),
        (RankingsFormat(), RANKED | {"ranking": [[0], [1, 1], [2]]}, "each of 0..2 exactly once"),
        (RankingsFormat(), RANKED | {"ranking": [[0], [1], [3]]}, "each of 0..2 exactly once"),
        (RankingsFormat(), RANKED | {"ranking": [[0, 1, 2]]}, "ties all responses"),
        (RankingsFormat(), RANKED | {"ranking": [[0, 1, 2], []]}, "ties all responses"),
        (RankingsFormat(), RANKED | {"ranking": "012"}, "field 'ranking' is '012'"),
        (RankingsFormat(), RANKED | {"responses": ["a", "b", "a"]}, "responses 0 and 2 are identical"),
        (LabelledTextFormat(), LABELLED | {"label": 2}, "0 or 1 is allowed"),
        (LabelledTextFormat(), {"label": 1}, "field 'text' is missing"),
    ],
)
def test_a_bad_row_is_named_with_its_field_and_remedy(format, row, message):
    with pytest.raises(ValueError, match=message) as error:
        read([row], format)

    assert str(error.value).startswith("data.train=x.jsonl, row 0: ")
    assert "data.on_bad_row=skip" in str(error.value)
    assert "\n" not in str(error.value)


def test_skipped_rows_are_listed_and_the_others_kept():
    found = read([PAIR, PAIR | {"rejected": "a"}, PAIR | {"chosen": "c"}], PairsFormat(), on_bad_row="skip")

    assert [comparison.responses[0] for comparison in found.comparisons] == ["a", "c"]
    assert len(found.skipped) == 1
    assert "row 1" in found.skipped[0]


def test_data_without_a_good_row_is_refused_even_when_skipping():
    with pytest.raises(ValueError, match="no usable row"):
        read([PAIR | {"rejected": "a"}], PairsFormat(), on_bad_row="skip")


def labelled(positive, negative):
    rows = [{"text": f"good {i}", "label": 1} for i in range(positive)]
    return rows + [{"text": f"bad {i}", "label": "0"} for i in range(negative)]


def test_labelled_texts_meet_in_groups_in_which_every_good_text_beats_every_bad_one():
    comparisons = read(labelled(4, 4), LabelledTextFormat(pairs_per_text=2)).comparisons

    assert len(comparisons) == 2
    texts = [text for comparison in comparisons for text in comparison.responses]
    assert sorted(texts) == sorted(row["text"] for row in labelled(4, 4))
    for comparison in comparisons:
        assert len(comparison.pairs()) == 4
        for winner, loser in comparison.pairs():
            assert comparison.responses[winner].startswith("good")
            assert comparison.responses[loser].startswith("bad")


def test_the_rarer_label_is_used_again_but_once_a_comparison():
    comparisons = read(labelled(5, 2), LabelledTextFormat(pairs_per_text=3)).comparisons

    assert [len(comparison.ranking[0]) for comparison in comparisons] == [3, 2]
    assert sorted(text for c in comparisons for text in c.responses if text.startswith("good")) == [
        f"good {i}" for i in range(5)
    ]
    for comparison in comparisons:
        assert len(set(comparison.responses)) == len(comparison.responses)


def test_which_labelled_texts_meet_depends_on_the_seed_alone():
    first, again, other = (read(labelled(9, 9), LabelledTextFormat(), seed=seed).comparisons for seed in (1, 1, 2))

    assert first == again
    assert first != other


def test_labelled_texts_need_both_labels():
    with pytest.raises(ValueError, match="no text of label 0"):
        read(labelled(3, 0), LabelledTextFormat())
