"""Rows with `prompt` and `completion` -> the token ids a reward model reads: what its scale is fitted on.

Owns reading and encoding of such rows. A model may have answered nothing at all, so an empty completion is a good row
here.
"""

from collections.abc import Iterable

from transformers import PreTrainedTokenizerBase

from reward.encoding import ExchangeEncoder, TokenIds, prompt_renderer, require_length
from reward.row_fields import OnBadRow, Row, RowReader, read_field, read_prompt, read_response


def encode_demonstrations(
    rows: Iterable[Row],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_tokens: int,
    source: str,
    on_bad_row: OnBadRow,
    chat_template: str | None = None,
) -> tuple[list[TokenIds], list[str]]:
    """Token ids of each row, and one line for each bad row that was left out.

    Args:
        rows: Rows with `prompt` and `completion`, each text or messages.
        tokenizer: The reward model's.
        max_tokens: Longest prompt plus completion, end of sequence included.
        source: Name of the data in errors.
        on_bad_row: "error" stops at the first bad row; "skip" leaves it out.
        chat_template: Jinja template for messages; None takes the tokenizer's.

    Raises:
        ValueError: a bad row, or no good one.
    """
    reader, render = RowReader(source, on_bad_row), prompt_renderer(tokenizer, chat_template)
    encoder = ExchangeEncoder(tokenizer)

    def encode(row: Row, _place: str) -> TokenIds:
        completion = read_response(read_field(row, "completion"), "completion", may_be_empty=True)
        ids = encoder.from_text(read_prompt(row, render), completion)
        require_length(ids, max_tokens)
        return ids

    return reader.read(rows, encode), reader.skipped
