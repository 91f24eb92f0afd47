"""Demonstrations to ids and loss masks, in every shape a row may have."""

from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from policies.tokenization import decode, encode_prompt, render_prompt
from rlhf.conversations import Example, examples_from_rows

CHATML = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}<eos>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
HISTORY = [{"role": "user", "content": "where is the cat?"}]
ANSWER = {"role": "assistant", "content": "on the mat"}


def encode(tokenizer: PreTrainedTokenizerBase, row: dict[str, Any], **options: Any) -> list[Example]:
    return examples_from_rows([row], tokenizer, max_tokens=200, source="rows", **options).examples


def learned(example: Example, tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """Prompt text, learned text; special tokens shown."""
    prompt = tokenizer.decode(example.token_ids[~example.loss_mask])
    return str(prompt), str(tokenizer.decode(example.token_ids[example.loss_mask]))


def test_loss_is_on_the_completion_and_its_end_only(tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    (example,) = encode(tiny_tokenizer, {"prompt": "the cat", "completion": " sat"})
    completion = tiny_tokenizer(" sat", add_special_tokens=False)["input_ids"]
    prompt = encode_prompt("the cat", tiny_tokenizer)
    assert example.token_ids.tolist() == [*prompt, *completion, tiny_tokenizer.eos_token_id]
    assert example.loss_mask.tolist() == [False] * len(prompt) + [True] * (len(completion) + 1)


def test_an_empty_prompt_is_the_bos_token_alone(tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    (example,) = encode(tiny_tokenizer, {"prompt": "", "completion": "the cat"})
    assert example.token_ids[~example.loss_mask].tolist() == [tiny_tokenizer.bos_token_id]


def test_messages_learn_the_answer_and_not_the_trailing_line_end(tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    (example,) = encode(tiny_tokenizer, {"messages": [*HISTORY, ANSWER]})
    assert learned(example, tiny_tokenizer) == ("<bos>user: where is the cat?\nassistant:", " on the mat<eos>")


def test_a_templates_own_end_of_turn_is_the_end_of_sequence_once(tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    (example,) = encode(tiny_tokenizer, {"messages": [*HISTORY, ANSWER]}, chat_template=CHATML)
    prompt, answer = learned(example, tiny_tokenizer)
    assert prompt.endswith("<assistant>")
    assert answer == "on the mat<eos>"


def test_prompt_ids_are_those_that_sampling_starts_from(tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    for template in (None, CHATML, "<bos>" + CHATML):
        (example,) = encode(tiny_tokenizer, {"messages": [*HISTORY, ANSWER]}, chat_template=template)
        sampled_from = encode_prompt(render_prompt(HISTORY, tiny_tokenizer, chat_template=template), tiny_tokenizer)
        assert example.token_ids[~example.loss_mask].tolist() == sampled_from.tolist()


def test_every_assistant_turn_is_an_example_with_the_turns_before_it_as_prompt(
    tiny_tokenizer: PreTrainedTokenizerBase,
) -> None:
    more = [{"role": "user", "content": "and the dog?"}, {"role": "assistant", "content": "on the hill"}]
    first, second = encode(tiny_tokenizer, {"messages": [*HISTORY, ANSWER, *more]})
    assert learned(first, tiny_tokenizer)[1] == " on the mat<eos>"
    prompt, answer = learned(second, tiny_tokenizer)
    assert "on the mat\nuser: and the dog?" in prompt
    assert answer == " on the hill<eos>"


def test_a_message_prompt_with_a_text_completion_equals_the_conversation(
    tiny_tokenizer: PreTrainedTokenizerBase,
) -> None:
    (whole,) = encode(tiny_tokenizer, {"messages": [*HISTORY, ANSWER]})
    for completion in ("on the mat", [ANSWER]):
        (example,) = encode(tiny_tokenizer, {"prompt": HISTORY, "completion": completion})
        assert example.token_ids.tolist() == whole.token_ids.tolist()


def test_turns_of_a_message_prompt_are_not_learned_again(tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    row = {"prompt": [*HISTORY, ANSWER, *HISTORY], "completion": "on the warm mat"}
    (example,) = encode(tiny_tokenizer, row)
    assert learned(example, tiny_tokenizer)[1] == " on the warm mat<eos>"


def test_learned_text_decodes_to_the_answer(tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    (example,) = encode(tiny_tokenizer, {"messages": [*HISTORY, ANSWER]})
    assert decode(example.token_ids[example.loss_mask], tiny_tokenizer).strip() == "on the mat"


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"prompt": "a"}, r"completion is missing"),
        ({"completion": "a"}, r"prompt is missing"),
        ({"prompt": "a", "completion": " \n"}, r"completion is ' \\n'; text of at least one character"),
        ({"prompt": 7, "completion": "a"}, r"prompt is 7; text or a list of messages"),
        ({"messages": []}, r"messages is \[\]"),
        ({"messages": [{"content": "a"}]}, r"each message needs a role"),
        ({"messages": HISTORY}, r"an assistant message after at least one other"),
        ({"messages": [ANSWER]}, r"an assistant message after at least one other"),
        ({"messages": [*HISTORY, {"role": "assistant", "content": ""}]}, r"content of role assistant is ''"),
        ({"prompt": "a", "completion": "on the mat " * 80}, r"tokens are more than max_tokens=200"),
    ],
)
def test_a_bad_row_is_named_with_its_field(
    tiny_tokenizer: PreTrainedTokenizerBase, row: dict[str, Any], complaint: str
) -> None:
    good = {"prompt": "a", "completion": "b"}
    with pytest.raises(ValueError, match=f"data.train=x, row 1: .*{complaint}.*on_bad_row=skip"):
        examples_from_rows([good, row], tiny_tokenizer, max_tokens=200, source="data.train=x")
    kept = examples_from_rows([good, row], tiny_tokenizer, max_tokens=200, source="x", on_bad_row="skip")
    assert (len(kept.examples), len(kept.skipped)) == (1, 1)


def test_a_template_that_refuses_the_roles_makes_a_bad_row(tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(ValueError, match=r"row 0: messages: the chat template refuses them \(roles must alternate\)"):
        encode(tiny_tokenizer, {"messages": [*HISTORY, ANSWER]}, chat_template=template)


def test_a_template_whose_prompt_does_not_begin_the_conversation_is_refused(
    tiny_tokenizer: PreTrainedTokenizerBase,
) -> None:
    template = "{% if add_generation_prompt %}reply now: {% else %}{{ messages[0]['content'] }}{% endif %}"
    with pytest.raises(ValueError, match=r"model.chat_template: the rendered conversation does not begin"):
        encode(tiny_tokenizer, {"messages": [*HISTORY, ANSWER]}, chat_template=template)


def test_nothing_but_bad_rows_is_refused_even_when_skipping(tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(ValueError, match=r"all 1 rows are bad; at least one is needed: x, row 0: prompt is missing"):
        examples_from_rows([{}], tiny_tokenizer, max_tokens=9, source="x", on_bad_row="skip")
