import gzip
import json
from pathlib import Path

import pytest

from reward.dialogues import TurnMarks, read_transcript, split_dialogues
from reward.row_fields import BadRowError

HH = Path("../shared/data/hh_rlhf/harmless_base_eval.jsonl.gz")


def turns(*contents):
    return [{"role": role, "content": text} for role, text in zip(["user", "assistant"] * 3, contents, strict=False)]


def test_a_transcript_is_cut_at_its_marks_and_keeps_other_spaces():
    text = "\n\nHuman: a pen?\n\n  Human: no mark\n\nAssistant:  yes \n\nHuman:"

    assert read_transcript(text, "chosen", TurnMarks()) == [
        {"role": "user", "content": "a pen?\n\n  Human: no mark"},
        {"role": "assistant", "content": " yes "},
        {"role": "user", "content": ""},
    ]


def test_marks_are_text_and_no_pattern():
    marks = TurnMarks(user="[Q].", assistant="(A)")

    assert read_transcript("[Q].one(A) two", "chosen", marks) == turns("one", "two")


@pytest.mark.parametrize("text", ["", "plain", "Hi\n\nHuman: a\n\nAssistant: b", 3, None])
def test_what_is_no_transcript_is_named_with_the_marks(text):
    with pytest.raises(BadRowError, match=r"field 'best' is .* begins with .*Human:.*data\.format\.turns"):
        read_transcript(text, "best", TurnMarks())


@pytest.mark.skipif(not HH.exists(), reason=f"{HH} is not here")
def test_transcripts_of_hh_rlhf_are_the_messages_that_others_made_of_them():
    with gzip.open(HH, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]

    for row in rows:
        raw = {name: read_transcript(row[f"raw_{name}"], name, TurnMarks()) for name in ("chosen", "rejected")}
        assert raw == {name: row["prompt"] + row[name] for name in raw}
        assert split_dialogues(None, raw) == (row["prompt"], [row["chosen"], row["rejected"]])


@pytest.mark.parametrize("prompt", [None, "who?", " who? ", turns("who?"), turns("who?", "which", "who?")])
def test_the_turns_that_dialogues_share_are_the_prompt(prompt):
    shared = turns("who?", "which", "who?")
    first, second = ([*shared, {"role": "assistant", "content": text}] for text in ("he", "she"))

    assert split_dialogues(prompt, {"a": first, "b": second}) == (shared, [first[3:], second[3:]])


def test_content_in_text_parts_is_text_and_other_parts_are_refused():
    def parts(answer, kind="text"):
        asked = {"role": "user", "content": [{"type": "text", "text": "wh"}, {"type": "text", "text": "o?"}]}
        return [asked, {"role": "assistant", "content": [{"type": kind, "text": answer}]}]

    answers = [[{"role": "assistant", "content": text}] for text in ("he", "she")]
    assert split_dialogues(None, {"a": parts("he"), "b": parts("she")}) == (turns("who?"), answers)
    with pytest.raises(BadRowError, match=r"field 'b' is .*; allowed are text, or a list of messages with text"):
        split_dialogues(None, {"a": parts("he"), "b": parts("she", kind="image")})


@pytest.mark.parametrize("prompt", ["who?", turns("who?")])
def test_answers_beside_their_prompt_stay_as_they_are(prompt):
    answers = [[{"role": "assistant", "content": "he"}], [{"role": "assistant", "content": "she"}]]

    assert split_dialogues(prompt, dict(zip("ab", answers, strict=True))) == (prompt, answers)
    assert split_dialogues(prompt, {"a": "he", "b": answers[1]}) == (prompt, ["he", answers[1]])
    assert split_dialogues(None, {"a": "he", "b": "she"}) == (None, ["he", "she"])


@pytest.mark.parametrize(
    ("prompt", "first", "second", "message"),
    [
        ("where?", turns("who?", "he"), turns("who?", "she"), "the turns they share do not hold the prompt ('where?')"),
        (turns("where?"), turns("who?", "he"), turns("who?", "she"), "do not hold the prompt"),
        (None, turns("who?", "he", "and?"), turns("who?", "she"), "field 'a' goes on for 2 turns"),
        (None, turns("who?"), turns("who?", "she"), "field 'a' goes on for 0 turns"),
        (None, turns("who?", "he"), [{"role": "user"}], "field 'b' is [{'role': 'user'}]"),
        ("who?", turns("who?", "he"), "she", "field 'b' is 'she', but 'a' holds a dialogue"),
    ],
)
def test_dialogues_that_are_not_two_answers_to_one_prompt_are_named(prompt, first, second, message):
    with pytest.raises(BadRowError) as error:
        split_dialogues(prompt, {"a": first, "b": second})

    assert message in str(error.value)
