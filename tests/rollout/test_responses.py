from typing import cast

import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase

from policies.tokenization import encode_prompt
from rollout.responses import NonFiniteLogitsError, OpenResponse, ResponseRules, StopStrings
from tests.rollout.fakes import prompt_of


def response(rules: ResponseRules, *tokens: int) -> OpenResponse:
    opened = OpenResponse(prompt_of("p", [1, 5, 6]), 2, rules, np.linspace(0.1, 0.9, 9))
    for token in tokens:
        opened.add(token, -float(token))
    return opened


def test_a_response_knows_what_its_next_token_needs() -> None:
    rules = ResponseRules(min_tokens=2, max_tokens=9, stop_ids=(7, 8))
    one, two = response(rules, 4), response(rules, 4, 5)
    assert (one.position, one.next_uniform, one.excluded_ids) == (3, pytest.approx(0.2), (7, 8))
    assert (two.position, two.next_uniform, two.excluded_ids) == (4, pytest.approx(0.3), ())


def test_it_becomes_a_completion_when_it_has_ended() -> None:
    completion = response(ResponseRules(min_tokens=0, max_tokens=9, stop_ids=(7,)), 4, 7).completion(version=5)
    assert (completion.prompt_id, completion.response_index) == ("p", 2)
    assert completion.token_ids.tolist() == [4, 7]
    assert completion.logprobs.tolist() == [-4.0, -7.0]
    assert (completion.finish_reason, completion.policy_version) == ("stop", 5)
    assert response(ResponseRules(0, 2, (7,)), 4, 5).completion(0).finish_reason == "length"


def test_a_stop_token_in_the_last_place_counts_as_a_stop() -> None:
    assert response(ResponseRules(min_tokens=0, max_tokens=2, stop_ids=(7,)), 4, 7).finish_reason == "stop"


def test_a_log_prob_that_is_no_number_is_an_error_that_names_the_prompt_and_the_version() -> None:
    opened = response(ResponseRules(min_tokens=0, max_tokens=2, stop_ids=()), 4)
    opened.add(5, float("nan"))
    with pytest.raises(NonFiniteLogitsError, match=r"prompt 'p': .* not finite at version 3"):
        opened.completion(version=3)


@pytest.mark.parametrize(
    ("text", "strings", "end"),
    [
        ("the cat sat on the mat", ("sat",), "the cat sat"),
        ("the cat sat on the mat", ("mat", "cat sat o"), "the cat sat o"),
        ("the cat sat", (" cat",), "the cat"),
        ("the cat sat", ("dog",), None),
        ("Wörter, ärger", ("är",), "Wörter, är"),
    ],
)
def test_a_stop_string_is_found_across_tokens_as_soon_as_it_is_there(
    tiny_tokenizer: PreTrainedTokenizerBase, text: str, strings: tuple[str, ...], end: str | None
) -> None:
    tokens = encode_prompt(text, tiny_tokenizer).tolist()
    stop = StopStrings(strings, tiny_tokenizer)
    first = next((n for n in range(1, len(tokens) + 1) if stop.end(tokens[:n])), None)
    if end is None:
        assert first is None
    else:
        spelled = cast(str, tiny_tokenizer.decode(tokens[:first], skip_special_tokens=True))
        # The token that completes the string may spell more than its end.
        assert spelled.startswith(end)
        assert not stop.end(tokens[: cast(int, first) - 1])


def test_a_stop_string_does_not_end_a_response_before_its_minimum(tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    tokens = encode_prompt("the cat", tiny_tokenizer).tolist()
    stop = StopStrings(("cat",), tiny_tokenizer)
    early, late = (ResponseRules(least, 99, (), stop) for least in (len(tokens), len(tokens) + 1))
    assert early.finish_reason(tokens) == "stop"
    assert late.finish_reason(tokens) is None
