"""One prompt and response -> the token ids that a reward model reads: prompt, response, end of sequence.

Owns the rule that a score is read at the end-of-sequence token, which closes every response, also one that was cut off.
It does not pad and does not know models.
"""

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from policies.tokenization import encode_completion, encode_prompt, render_prompt
from reward.row_fields import BadRowError, RenderPrompt

TokenIds = NDArray[np.int32]


class ExchangeEncoder:
    """Encodes exchanges with one tokenizer: `[special prefix] prompt response eos`."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self._special_ids = frozenset(tokenizer.all_special_ids)
        self._opening = _opening_ids(tokenizer)

    def from_text(self, prompt: str, response: str) -> TokenIds:
        """(T,) ids of rendered prompt and response; an empty prompt leaves the special prefix alone."""
        opening = encode_prompt(prompt, self.tokenizer) if prompt else self._opening
        return np.concatenate([opening, encode_completion(response, self.tokenizer)])

    def from_ids(self, prompt_ids: Sequence[int] | TokenIds | None, response_ids: Sequence[int] | TokenIds) -> TokenIds:
        """(T,) ids of an exchange that already has this tokenizer's ids; None stands for an empty prompt.

        Special tokens at the end of the response (the stop token, whichever it was) give way to the one end-of-sequence
        token, so that ids and text of a response are read alike.
        """
        length = len(response_ids)
        while length and int(response_ids[length - 1]) in self._special_ids:
            length -= 1
        opening = self._opening if prompt_ids is None else np.asarray(prompt_ids, dtype=np.int32)
        closing = np.array([self.tokenizer.eos_token_id], dtype=np.int32)
        return np.concatenate([opening, np.asarray(response_ids[:length], dtype=np.int32), closing])


def prompt_renderer(tokenizer: PreTrainedTokenizerBase, chat_template: str | None) -> RenderPrompt:
    """Prompt as written -> text: text stays as it is, messages go through the chat template."""
    return lambda prompt: render_prompt(prompt, tokenizer, chat_template=chat_template)


def require_length(ids: TokenIds, max_tokens: int) -> None:
    """Refuses an exchange that is too long; training cuts nothing off.

    Raises:
        BadRowError: naming both lengths.
    """
    if len(ids) > max_tokens:
        raise BadRowError(
            f"prompt plus response has {len(ids)} tokens, at most {max_tokens} are allowed (max_tokens, or the model's "
            "context): shorten it or raise the limit"
        )


def _opening_ids(tokenizer: PreTrainedTokenizerBase) -> TokenIds:
    """Special ids in front of any text: those of a prompt, less those of its bare text. Often one, or none."""
    bare = cast(list[int], cast(Any, tokenizer)("a", add_special_tokens=False)["input_ids"])
    whole = encode_prompt("a", tokenizer)
    return whole[: len(whole) - len(bare)]
