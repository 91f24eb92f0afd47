from pathlib import Path

import numpy as np
import pytest
from tokenizers import processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from policies.config import ModelConfig
from policies.tokenization import (
    decode,
    encode_completion,
    encode_prompt,
    load_tokenizer,
    render_prompt,
    tokenizer_fingerprint,
    train_tokenizer,
)

MESSAGES = [{"role": "user", "content": "where is the cat?"}]


@pytest.fixture
def own_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer that a test may change."""
    return train_tokenizer(["the cat sat on the mat"], vocabulary_size=280)


def saved(tokenizer: PreTrainedTokenizerBase, folder: Path) -> str:
    tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text("{}")
    return str(folder)


def test_a_prompt_begins_with_bos_and_a_completion_ends_with_eos(tiny_tokenizer: PreTrainedTokenizerBase):
    prompt, completion = encode_prompt("the cat", tiny_tokenizer), encode_completion(" sat", tiny_tokenizer)

    assert prompt[0] == tiny_tokenizer.bos_token_id
    assert prompt[-1] != tiny_tokenizer.eos_token_id
    assert completion[-1] == tiny_tokenizer.eos_token_id
    assert tiny_tokenizer.bos_token_id not in completion
    assert prompt.dtype == completion.dtype == np.int32


@pytest.mark.parametrize("text", ["the cat", "Grüße, 猫 🙂", " two  spaces\n\ttab ", ""])
def test_any_text_is_decoded_back_without_special_tokens(text: str, tiny_tokenizer: PreTrainedTokenizerBase):
    assert decode(encode_prompt(text, tiny_tokenizer), tiny_tokenizer) == text
    assert decode(encode_completion(text, tiny_tokenizer), tiny_tokenizer) == text


def test_what_a_tokenizer_puts_behind_a_text_does_not_end_a_prompt(own_tokenizer: PreTrainedTokenizerFast):
    own_tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 1), ("<eos>", 2)]
    )
    assert own_tokenizer("the cat")["input_ids"][-1] == 2

    prompt = encode_prompt("the cat", own_tokenizer)

    assert prompt.tolist() == [1, *own_tokenizer("the cat", add_special_tokens=False)["input_ids"]]
    assert encode_prompt("", own_tokenizer).tolist() == [1]


def test_an_empty_prompt_without_bos_is_refused(own_tokenizer: PreTrainedTokenizerFast):
    own_tokenizer.backend_tokenizer.post_processor = processors.ByteLevel()

    with pytest.raises(ValueError, match="prompt is empty"):
        encode_prompt("", own_tokenizer)


def test_plain_text_is_rendered_as_it_is(tiny_tokenizer: PreTrainedTokenizerBase):
    assert render_prompt("  as it is\n", tiny_tokenizer) == "  as it is\n"


def test_messages_fall_back_to_a_plain_template_that_asks_for_the_answer(tiny_tokenizer: PreTrainedTokenizerBase):
    text = render_prompt([{"role": "system", "content": "be kind"}, *MESSAGES], tiny_tokenizer)

    assert text == "system: be kind\nuser: where is the cat?\nassistant:"


def test_the_given_template_wins_over_the_tokenizers_own(own_tokenizer: PreTrainedTokenizerFast):
    own_tokenizer.chat_template = "own:{{ messages[0]['content'] }}"

    assert render_prompt(MESSAGES, own_tokenizer) == "own:where is the cat?"
    assert render_prompt(MESSAGES, own_tokenizer, chat_template="given") == "given"


def test_a_template_that_writes_bos_does_not_double_it(own_tokenizer: PreTrainedTokenizerFast):
    own_tokenizer.chat_template = "<bos>{{ messages[0]['content'] }}"

    ids = encode_prompt(render_prompt(MESSAGES, own_tokenizer), own_tokenizer)

    assert ids.tolist().count(1) == 1
    assert ids[0] == 1


def test_fingerprints_agree_exactly_when_ids_do(own_tokenizer: PreTrainedTokenizerFast, tmp_path: Path):
    same = PreTrainedTokenizerFast.from_pretrained(saved(own_tokenizer, tmp_path / "a"))
    other = train_tokenizer(["an entirely different corpus"], vocabulary_size=280)
    before = tokenizer_fingerprint(own_tokenizer)

    assert tokenizer_fingerprint(same) == before
    assert tokenizer_fingerprint(other) != before
    own_tokenizer.add_tokens(["<extra>"])
    assert tokenizer_fingerprint(own_tokenizer) != before


def test_a_trained_tokenizer_has_every_byte_and_stays_within_its_size():
    tokenizer = train_tokenizer(["ab " * 50], vocabulary_size=262)

    assert len(tokenizer) <= 262
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    assert decode(encode_completion("猫\x00z", tokenizer), tokenizer) == "猫\x00z"


@pytest.mark.parametrize("field", ["pad_token", "eos_token"])
def test_a_missing_special_token_is_refused_by_the_name_of_its_setting(
    field: str, own_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
):
    setattr(own_tokenizer, field, None)
    path = saved(own_tokenizer, tmp_path)

    with pytest.raises(ValueError, match=rf"^model\.{field}: .*set model\.{field} to a token"):
        load_tokenizer(ModelConfig(path=path))


def test_overrides_replace_the_tokenizers_own_special_tokens(own_tokenizer: PreTrainedTokenizerFast, tmp_path: Path):
    path = saved(own_tokenizer, tmp_path)

    tokenizer = load_tokenizer(ModelConfig(path=path, eos_token="<bos>", pad_token="<eos>", chat_template="mine"))

    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2)
    assert encode_completion("the", tokenizer)[-1] == 1
    assert render_prompt(MESSAGES, tokenizer) == "mine"


def test_an_override_outside_the_vocabulary_is_refused(own_tokenizer: PreTrainedTokenizerFast, tmp_path: Path):
    path = saved(own_tokenizer, tmp_path)

    with pytest.raises(ValueError, match=r"model\.pad_token='<nope>' is not in the tokenizer's vocabulary"):
        load_tokenizer(ModelConfig(path=path, pad_token="<nope>"))


def test_a_folder_without_tokenizer_is_refused_in_one_line(tmp_path: Path):
    (tmp_path / "config.json").write_text("{}")

    with pytest.raises(ValueError, match=r"^model\.path=.* cannot be loaded: [^\n]*$"):
        load_tokenizer(ModelConfig(path=str(tmp_path)))
