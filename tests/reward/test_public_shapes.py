"""Rows as public preference sets have them, read by settings alone."""

import re
from pathlib import Path
from typing import Annotated

import pytest
import yaml
from pydantic import Field, TypeAdapter

from reward.config import LabelledTextFormat, PairsFormat, PreferenceFormat, RankingsFormat
from reward.preferences import comparisons_from_rows
from reward.rankings.config import BattlesFormat, RankingsInput, ScoredFormat, VotesFormat
from reward.rankings.reading import judgements_from_rows

BEST_FIRST = ((0,), (1,))
BEST_LAST = ((1,), (0,))


def message(role, content):
    return {"role": role, "content": content}


def dialogue(answer):
    return [message("user", "q"), message("assistant", answer)]


PAIRS = {
    "hh-rlhf": (
        PairsFormat(turns={}),  # pyright: ignore[reportArgumentType]
        {"chosen": "\n\nHuman: q\n\nAssistant: good", "rejected": "\n\nHuman: q\n\nAssistant: bad"},
    ),
    "trl, implicit prompt": (PairsFormat(), {"chosen": dialogue("good"), "rejected": dialogue("bad")}),
    "ultrafeedback_binarized": (
        PairsFormat(margin_field=("score_chosen", "score_rejected")),
        {
            "prompt": "q",
            "chosen": dialogue("good"),
            "rejected": dialogue("bad"),
            "score_chosen": 8.5,
            "score_rejected": 3.0,
        },
    ),
    "one message each": (
        PairsFormat(prompt_field="conversations"),
        {
            "conversations": [message("user", "q")],
            "chosen": message("assistant", "good"),
            "rejected": message("assistant", "bad"),
        },
    ),
    "rewardbench": (
        PairsFormat(prompt_field="turns", source_field="subset"),
        {"turns": [message("user", "q")], "chosen": "good", "rejected": "bad", "subset": "xstest"},
    ),
    "texts inside objects": (
        RankingsFormat(
            prompt_field="ask.messages", responses_field="all", text_field="body.text", ranking_field="order"
        ),
        {
            "ask": {"messages": [message("user", "q")]},
            "all": [{"body": {"text": "good"}}, {"body": {"text": "bad"}}],
            "order": [[0], [1]],
        },
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_pairs_of_public_sets_are_read(name, tiny_tokenizer):
    format, row = PAIRS[name]

    (comparison,) = comparisons_from_rows([row], format, tokenizer=tiny_tokenizer, source=name).comparisons

    assert comparison.prompt == "user: q\nassistant:"
    assert (comparison.responses, comparison.ranking) == (("good", "bad"), BEST_FIRST)
    assert comparison.strengths == ((8.5, 3.0) if "score_chosen" in row else None)
    assert comparison.origin == row.get("subset")


JUDGED = {
    "ultrafeedback": (
        ScoredFormat(
            prompt_field="instruction",
            responses_field="completions",
            text_field="response",
            score_field="annotations.helpfulness.Rating",
        ),
        {
            "instruction": "q",
            "completions": [
                {"model": "m", "response": "a", "annotations": {"helpfulness": {"Rating": "2"}}},
                {"model": "n", "response": "b", "annotations": {"helpfulness": {"Rating": "5"}}},
            ],
        },
        BEST_LAST,
    ),
    "webgpt_comparisons": (
        ScoredFormat(
            prompt_field="question.full_text",
            responses_field=("answer_0", "answer_1"),
            scores_field=("score_0", "score_1"),
        ),
        {"question": {"full_text": "q"}, "answer_0": "a", "score_0": -0.5, "answer_1": "b", "score_1": 0.5},
        BEST_LAST,
    ),
    "arena, a column for each winner": (
        ScoredFormat(responses_field=("response_a", "response_b"), scores_field=("winner_model_a", "winner_model_b")),
        {"prompt": "q", "response_a": "a", "response_b": "b", "winner_model_a": 0, "winner_model_b": 1},
        BEST_LAST,
    ),
    "nectar": (
        ScoredFormat(responses_field="answers", text_field="answer", score_field="rank", best_score="lowest"),
        {"prompt": "q", "answers": [{"answer": "a", "rank": 1.0}, {"answer": "b", "rank": 2.0}]},
        BEST_FIRST,
    ),
    "oasst trees": (
        ScoredFormat(
            prompt_field="prompt.text", responses_field="prompt.replies", score_field="rank", best_score="lowest"
        ),
        {"prompt": {"text": "q", "replies": [{"text": "a", "rank": 1}, {"text": "b", "rank": 0}]}},
        BEST_LAST,
    ),
    "mix-instruct": (
        ScoredFormat(prompt_field="instruction", responses_field="candidates", score_field="scores.bartscore"),
        {
            "instruction": "q",
            "candidates": [{"text": "a", "scores": {"bartscore": -3.5}}, {"text": "b", "scores": {"bartscore": -3.1}}],
        },
        BEST_LAST,
    ),
    "SHP": (
        VotesFormat(
            prompt_field="history",
            responses_field=("human_ref_A", "human_ref_B"),
            choice_field="labels",
            choices={1: 0, 0: 1},
            rater_field=None,
        ),
        {"history": "q", "human_ref_A": "a", "human_ref_B": "b", "labels": 1, "score_A": 10, "score_B": 3},
        BEST_FIRST,
    ),
    "summarize_from_feedback": (
        VotesFormat(prompt_field="info.post", responses_field="summaries", model_field="policy", rater_field="worker"),
        {
            "info": {"post": "q"},
            "summaries": [{"text": "a", "policy": "sup1"}, {"text": "b", "policy": "ref"}],
            "choice": 1,
            "worker": "w1",
        },
        BEST_LAST,
    ),
    "PKU-SafeRLHF": (
        VotesFormat(responses_field=("response_0", "response_1"), choice_field="safer_response_id", rater_field=None),
        {"prompt": "q", "response_0": "a", "response_1": "b", "better_response_id": 0, "safer_response_id": 1},
        BEST_LAST,
    ),
    "labels in words": (
        VotesFormat(
            responses_field=("answer_a", "answer_b"), choice_field="label", choices={"A": 0, "B": 1}, rater_field="by"
        ),
        {"prompt": "q", "answer_a": "a", "answer_b": "b", "label": "A", "by": 3},
        BEST_FIRST,
    ),
    "chatbot arena": (
        BattlesFormat(response_a_field="conversation_a", response_b_field="conversation_b", rater_field="judge"),
        {
            "model_a": "m",
            "model_b": "n",
            "winner": "model_b",
            "judge": "u",
            "conversation_a": dialogue("a"),
            "conversation_b": dialogue("b"),
        },
        BEST_LAST,
    ),
    "an arena of its own words": (
        BattlesFormat(
            model_a_field="left.model",
            model_b_field="right.model",
            response_a_field="left.text",
            response_b_field="right.text",
            winner_field="won",
            outcomes={"l": "model_a", 2: "model_b"},
        ),
        {
            "prompt": "q",
            "left": {"model": "m", "text": "a"},
            "right": {"model": "n", "text": "b"},
            "won": 2,
        },
        BEST_LAST,
    ),
}


@pytest.mark.parametrize("name", JUDGED)
def test_judgements_of_public_sets_are_read(name):
    format, row, ranking = JUDGED[name]

    judged = judgements_from_rows([row], format, source=name)

    assert judged.prompts == ([[message("user", "q")]] if name == "chatbot arena" else ["q"])
    assert [response.text for response in judged.responses] == ["a", "b"]
    assert [judgement.ranking for judgement in judged.judgements] == [ranking]
    models = {"summarize_from_feedback": ["sup1", "ref"]}.get(name, ["m", "n"])
    assert judged.models == (models if name in MODELS else [])


MODELS = ("ultrafeedback", "summarize_from_feedback", "chatbot arena", "an arena of its own words")


def test_the_formats_of_the_readme_are_settings_of_this_version():
    page = Path(__file__).parents[2].joinpath("README.md").read_text(encoding="utf-8")
    written = re.findall(r"^\| [^|]+ \| `(\{kind: .*\})` \|$", page, flags=re.MULTILINE)

    adapter = TypeAdapter(Annotated[PreferenceFormat | RankingsInput, Field(discriminator="kind")])
    kinds = [adapter.validate_python(yaml.safe_load(text)).kind for text in written]

    assert set(kinds) == {"pairs", "labelled_text", "scored", "votes", "battles"}
    assert len(kinds) == 13


def test_labels_in_words_say_which_texts_are_preferred(tiny_tokenizer):
    format = LabelledTextFormat(
        text_field="sentence", label_field="mood", chosen_labels=("good", "fine"), rejected_labels=(-1,)
    )
    rows = [
        {"sentence": "x", "mood": "fine"},
        {"sentence": "y", "mood": "-1"},
        {"sentence": "z", "mood": "good"},
        {"sentence": "w", "mood": -1},
    ]

    found = comparisons_from_rows(rows, format, tokenizer=tiny_tokenizer, source="csv").comparisons

    assert {comparison.responses[0] for comparison in found} == {"x", "z"}
    assert {comparison.responses[1] for comparison in found} == {"y", "w"}
    with pytest.raises(ValueError, match=r"field 'mood' is 'bad'; -1 or good or fine is allowed"):
        comparisons_from_rows([{"sentence": "x", "mood": "bad"}], format, tokenizer=tiny_tokenizer, source="csv")


def test_transcripts_that_are_read_as_texts_are_hinted_at(tiny_tokenizer, caplog):
    format, row = PAIRS["hh-rlhf"]
    comparisons_from_rows([row], PairsFormat(), tokenizer=tiny_tokenizer, source="hh.jsonl")
    assert "hh.jsonl, row 0: both texts begin with" in caplog.text
    assert "set data.format.turns={}" in caplog.text
    caplog.clear()
    comparisons_from_rows([row], format, tokenizer=tiny_tokenizer, source="hh.jsonl")
    comparisons_from_rows(
        [PAIRS["rewardbench"][1] | {"prompt": "q"}], PairsFormat(), tokenizer=tiny_tokenizer, source="x"
    )
    assert not caplog.text
