"""Plain text -> token sequences: an endless packed stream for training, and whole documents for perplexity.

A document is `<bos> text <eos>` (whichever of the two the tokenizer has in front). Owns packing, the order of
documents and the position in it, which a checkpoint can save. It takes no optimizer step: pretraining and PPO-ptx
do that with what `next` returns.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from policies.causal import CausalPolicy
from policies.sequences import pad_texts
from policies.tokenization import encode_prompt
from rlhf.row_shares import share_rows
from rlhf.runtime.distributed import ALONE, Ranks
from rlhf.sequence_filling import fill_sequences

TokenIds = NDArray[np.int32]
Row = Mapping[str, Any]
Packing = Literal["concatenated", "documents", "packed"]


class TextStream:
    """Endless sequences of tokens from documents, in an order that the seed decides.

    Each epoch is a fresh permutation of the documents. "concatenated" lays them end to end and cuts sequences; the rest
    that fills none is left out (another one each epoch), and a sequence may begin and end within a document.
    "documents" makes each document a sequence, or several where it is longer, and packs nothing. "packed" fills
    sequences with whole documents; each of them is a row of its own, so that none sees another.

    Args:
        texts: At least one document.
        tokenizer: Of the model that reads the sequences.
        sequence_tokens: T, length of each sequence.
        seed: Decides the order.
        packing: See above.
    """

    def __init__(
        self,
        texts: Sequence[str],
        tokenizer: PreTrainedTokenizerBase,
        *,
        sequence_tokens: int,
        seed: int,
        packing: Packing = "concatenated",
    ) -> None:
        assert texts, "a text stream needs at least one document; `require_texts` refuses an empty set with a message"
        documents = encode_documents(
            texts, tokenizer, max_tokens=None if packing == "concatenated" else sequence_tokens
        )
        if packing == "concatenated" and tokenizer.bos_token_id == tokenizer.eos_token_id:
            # Models that end a document with the token that begins the next one saw one such token between two
            # documents, not two.
            documents = [document[:-1] if document[0] == document[-1] else document for document in documents]
        self._documents = documents
        self._corpus_tokens = sum(len(document) for document in documents)
        self._sequence_tokens = sequence_tokens
        self._packing: Packing = packing
        self._seed = seed
        self._epoch = 0
        self._position = 0
        self._sequences = self._lay_out(epoch=0)

    @property
    def epoch_progress(self) -> float:
        """Passes over the documents so far, e.g. 1.5."""
        return self._epoch + self._position / len(self._sequences)

    def next(self, count: int) -> list[TokenIds]:
        """The rows of the next `count` sequences; not to be written to.

        "concatenated" has a row of (T,) for each sequence, "documents" one of up to T tokens, "packed" several that
        have up to T together.
        """
        return [row for _ in range(count) for row in self._next_sequence()]

    def state_dict(self) -> dict[str, int]:
        """Epoch and position in it, and the size of the corpus by which `load_state_dict` knows it again."""
        return {"epoch": self._epoch, "position": self._position, "corpus_tokens": self._corpus_tokens}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continue where `state_dict` was taken.

        Raises:
            ValueError: If the documents or the tokenizer are not those of the saved state.
        """
        if state["corpus_tokens"] != self._corpus_tokens:
            raise ValueError(
                f"the text holds {self._corpus_tokens} tokens, the checkpoint was made with {state['corpus_tokens']}; "
                "--resume needs the same rows and tokenizer: restore them, or name another run_dir"
            )
        self._epoch, self._position = state["epoch"], state["position"]
        self._sequences = self._lay_out(self._epoch)

    def _next_sequence(self) -> Sequence[TokenIds]:
        if self._position == len(self._sequences):
            self._epoch, self._position = self._epoch + 1, 0
            self._sequences = self._lay_out(self._epoch)
        self._position += 1
        return self._sequences[self._position - 1]

    def _lay_out(self, epoch: int) -> Sequence[Sequence[TokenIds]]:
        """Sequences of an epoch, at least one: a corpus shorter than a concatenated sequence is repeated to fill it."""
        order = np.random.default_rng([self._seed, epoch]).permutation(len(self._documents))
        documents = [self._documents[index] for index in order]
        if self._packing == "documents":
            return [[document] for document in documents]
        if self._packing == "packed":
            groups = fill_sequences([len(document) for document in documents], self._sequence_tokens)
            return [[documents[index] for index in group] for group in groups]
        tokens = np.concatenate(documents)
        count = max(1, len(tokens) // self._sequence_tokens)
        sequences = np.resize(tokens, (count, self._sequence_tokens))
        sequences.flags.writeable = False
        return [[sequence] for sequence in sequences]


def require_texts(
    rows: Iterable[Row], *, source: str, on_bad_row: Literal["error", "skip"] = "error"
) -> tuple[list[str], list[str]]:
    """The column `text` of every row, and one line for each row that `on_bad_row="skip"` left out.

    Raises:
        ValueError: If a row has no text and `on_bad_row` is "error", or no row is left.
    """
    texts: list[str] = []
    skipped: list[str] = []
    for number, row in enumerate(rows):
        found = text_problem(row)
        if found is None:
            texts.append(row["text"])
            continue
        problem = f"{source}, row {number}: {found}"
        if on_bad_row == "error":
            raise ValueError(f"{problem}; or set data.on_bad_row=skip")
        skipped.append(problem)
    if not texts:
        raise ValueError(f"{source}: no row has a text; give rows with the field `text`")
    return texts, skipped


def text_problem(row: Row) -> str | None:
    """What is wrong with the column `text` of a row; None where it holds a text."""
    text = row.get("text")
    if isinstance(text, str) and text:
        return None
    return f"text is {text!r}; a text of at least one character is needed"


def encode_documents(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, *, max_tokens: int | None = None
) -> list[TokenIds]:
    """Texts as documents of token ids, end-of-sequence included.

    Args:
        texts: Documents of at least one character.
        tokenizer: Of the model that reads the ids.
        max_tokens: A longer document is cut into pieces of at most this many tokens. A piece begins with the last token
            of the one before it, so that every token but the document's first is predicted exactly once.
    """
    if not texts:
        return []
    bodies = cast(list[list[int]], tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"])
    front = _tokens_in_front(texts[0], bodies[0], tokenizer)
    documents = [np.array([*front, *body, tokenizer.eos_token_id], dtype=np.int32) for body in bodies]
    if max_tokens is None:
        return documents
    return [piece for document in documents for piece in _pieces(document, max_tokens)]


def perplexity(
    policy: CausalPolicy, texts: Sequence[str], *, micro_batch_tokens: int = 8192, ranks: Ranks = ALONE
) -> float:
    """exp(mean negative log-likelihood per token) over documents, each read by itself, end-of-sequence included.

    Args:
        policy: Model and adapter to measure, at temperature 1.
        texts: At least one document; one that exceeds the context is read in pieces.
        micro_batch_tokens: Padded tokens of one forward pass; changes memory and speed only.
        ranks: Those that share the documents; all must ask.
    """
    backbone = policy.backbone
    documents = encode_documents(texts, backbone.tokenizer, max_tokens=backbone.context_tokens)
    return math.exp(mean_nll(policy, documents, micro_batch_tokens=micro_batch_tokens, ranks=ranks))


@torch.no_grad()
def mean_nll(
    policy: CausalPolicy, documents: Sequence[TokenIds], *, micro_batch_tokens: int, ranks: Ranks = ALONE
) -> float:
    """Mean negative log-likelihood, nats per token, of every token of the documents but the first of each."""
    backbone = policy.backbone
    total, count = 0.0, 0
    lengths = [len(document) for document in documents]
    share = share_rows(lengths, ranks, token_budget=micro_batch_tokens, counts_padding=True)
    for group in share.groups:
        batch = pad_texts([documents[index] for index in group], pad_id=backbone.pad_id, device=backbone.device)
        total += policy.text_nll(batch).double().sum().item()
        count += int(batch.response_mask.sum())
    for _ in range(share.ghosts):
        policy.text_nll(pad_texts([documents[share.ghost_row]], pad_id=backbone.pad_id, device=backbone.device))
    total, count = ranks.total(total, count)
    return total / count


def _tokens_in_front(text: str, body: list[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Special tokens that the tokenizer puts in front of a prompt; a document gets the same."""
    prompt = encode_prompt(text, tokenizer).tolist()
    return prompt[: len(prompt) - len(body)]


def _pieces(document: TokenIds, max_tokens: int) -> list[TokenIds]:
    stride = max_tokens - 1
    return [document[start : start + max_tokens] for start in range(0, max(len(document) - 1, 1), stride)]
