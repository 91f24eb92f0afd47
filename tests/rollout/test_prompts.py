import json
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase

from rollout.prompts import PromptSet, PromptStream, prompts_from_rows
from tests.rollout.fakes import prompt_of

BOS = 1


def read(rows: list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, **options: Any) -> PromptSet:
    settings = {"max_prompt_tokens": 40, "source": "data.train=rows.jsonl"} | options
    return prompts_from_rows(rows, tokenizer, **settings)


class TestRows:
    def test_text_becomes_ids_that_begin_with_the_tokenizers_bos(self, tiny_tokenizer: PreTrainedTokenizerBase) -> None:
        (prompt,) = read([{"prompt": "the cat"}], tiny_tokenizer).prompts
        assert prompt.text == "the cat"
        assert prompt.token_ids.dtype == np.int32
        assert prompt.token_ids[0] == BOS
        assert tiny_tokenizer.decode(prompt.token_ids.tolist(), skip_special_tokens=True) == "the cat"

    def test_messages_are_rendered_by_the_chat_template(self, tiny_tokenizer: PreTrainedTokenizerBase) -> None:
        rows = [{"prompt": [{"role": "user", "content": "where?"}]}]
        assert read(rows, tiny_tokenizer).prompts[0].text == "user: where?\nassistant:"
        template = "{% for message in messages %}[{{ message['content'] }}]{% endfor %}"
        assert read(rows, tiny_tokenizer, chat_template=template).prompts[0].text == "[where?]"

    def test_ids_come_from_the_rows_or_else_from_their_numbers(self, tiny_tokenizer: PreTrainedTokenizerBase) -> None:
        rows = [{"prompt": "a", "id": "first"}, {"prompt": "b"}, {"prompt": "c", "id": 7}, {"prompt": "d", "id": None}]
        assert [prompt.id for prompt in read(rows, tiny_tokenizer).prompts] == ["first", "1", "7", "3"]

    def test_other_columns_travel_along_where_json_can_hold_them(self, tiny_tokenizer: PreTrainedTokenizerBase) -> None:
        row = {"prompt": "a", "id": "x", "answer": "4", "tags": ["m", 1], "image": object()}
        assert read([row], tiny_tokenizer).prompts[0].fields == {"answer": "4", "tags": ["m", 1]}

    @pytest.mark.parametrize(
        ("row", "complaint"),
        [
            ({"question": "x"}, r"row 1: field 'prompt' is missing \(the row has 'question'\)"),
            ({"prompt": None}, "row 1: field 'prompt' is missing"),
            ({"prompt": 5}, "row 1: field 'prompt' is 5; allowed are text, or a list of messages"),
            ({"prompt": []}, r"row 1: field 'prompt' is \[\]; allowed"),
            ({"prompt": [{"role": "user"}]}, "row 1: field 'prompt' is .*'content'"),
            ({"prompt": "cat " * 50}, r"row 1: field 'prompt' has \d+ tokens, at most max_prompt_tokens=40"),
            ({"prompt": "x", "id": 1.5}, "row 1: field 'id' is 1.5; text or an integer"),
            ({"prompt": "x", "id": 0}, "row 1: field 'id' is '0', as in row 0; ids must be unique"),
        ],
    )
    def test_a_bad_row_is_an_error_that_names_source_row_and_field(
        self, tiny_tokenizer: PreTrainedTokenizerBase, row: dict[str, Any], complaint: str
    ) -> None:
        with pytest.raises(ValueError, match=complaint) as caught:
            read([{"prompt": "good"}, row], tiny_tokenizer)
        message = str(caught.value)
        assert message.startswith("data.train=rows.jsonl, row 1:")
        assert "on_bad_row=skip" in message
        assert "\n" not in message

    def test_skipped_rows_are_listed_and_the_others_keep_their_numbers(
        self, tiny_tokenizer: PreTrainedTokenizerBase
    ) -> None:
        rows = [{"prompt": "a"}, {"prompt": 5}, {"prompt": "c"}]
        result = read(rows, tiny_tokenizer, on_bad_row="skip")
        assert [prompt.id for prompt in result.prompts] == ["0", "2"]
        assert len(result.skipped) == 1
        assert result.skipped[0].startswith("data.train=rows.jsonl, row 1: field 'prompt'")

    def test_a_prompt_of_exactly_the_limit_is_taken(self, tiny_tokenizer: PreTrainedTokenizerBase) -> None:
        length = len(read([{"prompt": "the cat sat"}], tiny_tokenizer).prompts[0].token_ids)
        assert read([{"prompt": "the cat sat"}], tiny_tokenizer, max_prompt_tokens=length).prompts
        with pytest.raises(ValueError, match=f"has {length} tokens, at most max_prompt_tokens={length - 1}"):
            read([{"prompt": "the cat sat"}], tiny_tokenizer, max_prompt_tokens=length - 1)

    def test_no_good_row_at_all_is_an_error_even_when_bad_rows_are_skipped(
        self, tiny_tokenizer: PreTrainedTokenizerBase
    ) -> None:
        with pytest.raises(ValueError, match=r"no prompt \(1 bad rows, the first: .*row 0.*missing"):
            read([{"text": "a"}], tiny_tokenizer, on_bad_row="skip")
        with pytest.raises(ValueError, match=r"no prompt \(0 bad rows\)"):
            read([], tiny_tokenizer)


class TestStream:
    PROMPTS = tuple(prompt_of(str(index)) for index in range(7))

    def ids(self, stream: PromptStream, count: int) -> list[str]:
        return [prompt.id for prompt in stream.next(count)]

    def test_every_epoch_holds_each_prompt_once_in_an_order_of_its_own(self) -> None:
        stream = PromptStream(self.PROMPTS, seed=0)
        epochs = [self.ids(stream, 7) for _ in range(4)]
        assert all(sorted(epoch) == list("0123456") for epoch in epochs)
        assert len({tuple(epoch) for epoch in epochs}) == 4

    def test_the_order_depends_on_the_seed_and_not_on_the_size_of_the_steps(self) -> None:
        def order(seed: int, *counts: int) -> list[str]:
            stream = PromptStream(self.PROMPTS, seed=seed)
            return [prompt_id for count in counts for prompt_id in self.ids(stream, count)]

        assert order(0, 5, 5, 5, 5) == order(0, 20) == order(0, 1, 19)
        assert order(0, 20) != order(1, 20)

    def test_more_prompts_than_there_are_run_on_into_the_next_epochs(self) -> None:
        taken = self.ids(PromptStream(self.PROMPTS, seed=0), 17)
        assert sorted(taken[:7]) == sorted(taken[7:14]) == list("0123456")
        assert len(taken) == 17

    @pytest.mark.parametrize("consumed", [0, 3, 7, 12, 21])
    def test_a_resumed_stream_continues_where_the_straight_one_goes_on(self, consumed: int) -> None:
        straight = PromptStream(self.PROMPTS, seed=5)
        straight.next(consumed)
        state = json.loads(json.dumps(straight.state_dict()))
        resumed = PromptStream(self.PROMPTS, seed=5)
        resumed.next(4)
        resumed.load_state_dict(state)
        assert self.ids(resumed, 16) == self.ids(straight, 16)

    def test_a_state_of_another_seed_or_data_set_is_refused(self) -> None:
        state = PromptStream(self.PROMPTS, seed=5).state_dict()
        with pytest.raises(ValueError, match="seed=5, this run has 6"):
            PromptStream(self.PROMPTS, seed=6).load_state_dict(state)
        with pytest.raises(ValueError, match="prompts=7, this run has 6"):
            PromptStream(self.PROMPTS[:6], seed=5).load_state_dict(state)

    def test_progress_counts_passes_over_the_prompts(self) -> None:
        stream = PromptStream(self.PROMPTS, seed=0)
        assert stream.epoch_progress == 0
        stream.next(7)
        assert stream.epoch_progress == 1
        stream.next(3)
        assert stream.epoch_progress == pytest.approx(1 + 3 / 7)

    def test_a_stream_of_no_prompts_is_refused(self) -> None:
        with pytest.raises(ValueError, match="at least one prompt"):
            PromptStream([], seed=0)
