import pytest

from policies.tokenization import decode, encode_completion, encode_prompt
from reward.encoding import ExchangeEncoder, require_length
from reward.row_fields import BadRowError

PAD, BOS, EOS = 0, 1, 2


@pytest.fixture(scope="module")
def encoder(tiny_tokenizer):
    return ExchangeEncoder(tiny_tokenizer)


def test_an_exchange_is_prompt_response_and_end_of_sequence(encoder, tiny_tokenizer):
    ids = encoder.from_text("the cat", " sat").tolist()

    assert ids == [*encode_prompt("the cat", tiny_tokenizer), *encode_completion(" sat", tiny_tokenizer)]
    assert (ids[0], ids[-1]) == (BOS, EOS)
    assert decode(ids, tiny_tokenizer) == "the cat sat"


def test_an_empty_prompt_leaves_the_special_prefix(encoder, tiny_tokenizer):
    assert encoder.from_text("", " sat").tolist() == [BOS, *encode_completion(" sat", tiny_tokenizer)]
    assert encoder.from_text("", "").tolist() == [BOS, EOS]


@pytest.mark.parametrize("ending", [[], [EOS], [PAD], [PAD, EOS]])
def test_ids_are_read_like_their_text_however_the_response_ended(encoder, tiny_tokenizer, ending):
    prompt, response = encode_prompt("a dog", tiny_tokenizer), encode_completion(" ran", tiny_tokenizer)[:-1]

    ids = encoder.from_ids(prompt, [*response, *ending])

    assert ids.tolist() == encoder.from_text("a dog", " ran").tolist()


def test_ids_without_a_prompt_are_read_like_text_without_one(encoder, tiny_tokenizer):
    response = encode_completion(" ran", tiny_tokenizer)

    assert encoder.from_ids(None, response).tolist() == encoder.from_text("", " ran").tolist()


def test_a_special_token_inside_a_response_stays(encoder):
    assert encoder.from_ids([BOS, 9], [7, EOS, 8, EOS]).tolist() == [BOS, 9, 7, EOS, 8, EOS]


def test_too_long_an_exchange_is_a_bad_row(encoder):
    ids = encoder.from_text("", " sat")

    require_length(ids, len(ids))
    with pytest.raises(BadRowError, match=f"has {len(ids)} tokens, at most {len(ids) - 1} are allowed"):
        require_length(ids, len(ids) - 1)
