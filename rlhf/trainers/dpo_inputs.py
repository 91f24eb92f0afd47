"""The data and the model of a DPO run, ready to train: pairs with the reference's log-probs of their responses.

Owns what is refused before the run folder is made. The reference is asked once, before anything moves, so it needs no
memory while the policy trains.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from policies.backbone import Backbone
from policies.causal import CausalPolicy
from policies.loading import REFERENCE_ADAPTER, load_backbone, prepare_policy
from policies.sequences import TokenIds
from policies.tokenization import encode_completion, encode_prompt
from reward.encoding import require_length
from reward.preferences import Comparison, comparisons_from_rows
from reward.row_fields import BadRowError, RowReader
from rlhf.compute_precision import reduced_precision
from rlhf.config import DpoConfig
from rlhf.data import load_rows
from rlhf.example_order import example_order
from rlhf.trainers.trl_dpo import PreferredPair
from rlhf.trainers.trl_loop import require_context, trains_in_bfloat16

logger = logging.getLogger(__name__)

LogProbs = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ComparisonSet:
    """Comparisons as a policy reads them, S responses in all.

    Attributes:
        comparisons: In the order of the rows.
        prompts: S arrays of ids; a prompt stands there once for each of its responses.
        responses: S arrays of ids, end of sequence included.
        reference_logprobs: (S,) log pi_reference of each response, nats per sequence.
    """

    comparisons: Sequence[Comparison]
    prompts: Sequence[TokenIds]
    responses: Sequence[TokenIds]
    reference_logprobs: LogProbs

    def __len__(self) -> int:
        return len(self.comparisons)

    def pairs(self) -> list[PreferredPair]:
        """Every pair that is not a tie, those of one comparison side by side."""
        pairs: list[PreferredPair] = []
        start = 0
        for comparison in self.comparisons:
            pairs += [self._pair(start + winner, start + loser) for winner, loser in comparison.pairs()]
            start += len(comparison.responses)
        return pairs

    def _pair(self, winner: int, loser: int) -> PreferredPair:
        return PreferredPair(
            self.prompts[winner],
            self.responses[winner],
            self.responses[loser],
            float(self.reference_logprobs[winner]),
            float(self.reference_logprobs[loser]),
        )


class DpoInputs:
    """The data and the model of a run.

    Attributes:
        backbone: The model, with the adapter that trains where tuning is LoRA.
        adapter: Name of that adapter; None where the model itself trains.
        pairs: What is trained on.
        held_out: Held-out comparisons; empty without `data.eval`.
        skipped: One line for each row that `on_bad_row=skip` left out.
        order: Index into `pairs` of everything the run trains on (see `example_order`).
    """

    def __init__(self, config: DpoConfig) -> None:
        self.backbone = load_backbone(config.model)
        self.adapter = prepare_policy(self.backbone, config.model.tuning, seed=config.seed)
        require_context(config.max_tokens, self.backbone)
        self.skipped: list[str] = []
        self.pairs = self._comparisons(config, config.data.train, "data.train").pairs()
        self.held_out = ComparisonSet([], [], [], np.zeros(0))
        if config.data.eval is not None:
            self.held_out = self._comparisons(config, config.data.eval, "data.eval")
        lengths = [pair.token_count for pair in self.pairs]
        self.order = example_order(
            lengths, epochs=config.epochs, examples_per_step=config.pairs_per_step, seed=config.seed
        )

    def _comparisons(self, config: DpoConfig, data: str, field: str) -> ComparisonSet:
        tokenizer, source = self.backbone.tokenizer, f"{field}={data}"
        found = comparisons_from_rows(
            load_rows(data, field=field),
            config.data.format,
            tokenizer=tokenizer,
            source=source,
            on_bad_row=config.data.on_bad_row,
            chat_template=config.model.chat_template,
        )
        reader = RowReader(source, config.data.on_bad_row)
        kept: list[Comparison] = []
        prompts: list[TokenIds] = []
        responses: list[TokenIds] = []
        for comparison in found.comparisons:
            try:
                prompt, encoded = _encode(comparison, self.backbone, config.max_tokens)
            except BadRowError as error:
                reader.refuse(comparison.source, error)
                continue
            kept.append(comparison)
            prompts += [prompt] * len(encoded)
            responses += encoded
        reader.require_any(kept)
        for line in (*found.skipped, *reader.skipped):
            logger.warning("skipped %s", line)
        self.skipped += [*found.skipped, *reader.skipped]
        return ComparisonSet(kept, prompts, responses, self._reference_logprobs(prompts, responses, config))

    def _reference_logprobs(
        self, prompts: Sequence[TokenIds], responses: Sequence[TokenIds], config: DpoConfig
    ) -> LogProbs:
        """By the policy as it starts: adapters off, or the frozen copy of the adapter that `model.path` holds."""
        adapter = REFERENCE_ADAPTER if REFERENCE_ADAPTER in self.backbone.adapters.names else None
        reference = CausalPolicy(self.backbone, adapter=adapter, temperature=1.0)
        budget = config.micro_batch_pairs * config.max_tokens
        return sequence_logprobs(reference, prompts, responses, token_budget=budget)


def sequence_logprobs(
    policy: CausalPolicy, prompts: Sequence[TokenIds], responses: Sequence[TokenIds], *, token_budget: int
) -> LogProbs:
    """(S,) log-probability of each whole response, nats, in the precision in which TRL computes it.

    Args:
        policy: Model and adapter, at temperature 1.
        prompts: S arrays of ids.
        responses: S arrays of ids.
        token_budget: Tokens of one forward pass; changes memory and speed only.
    """
    device = policy.backbone.device
    with reduced_precision(device, torch.bfloat16 if trains_in_bfloat16(device) else torch.float32):
        rows = policy.response_logprobs(prompts, responses, token_budget=token_budget)
    return np.array([row.sum(dtype=np.float64) for row in rows])


def _encode(comparison: Comparison, backbone: Backbone, max_tokens: int) -> tuple[TokenIds, list[TokenIds]]:
    try:
        prompt = encode_prompt(comparison.prompt, backbone.tokenizer)
    except ValueError as error:
        raise BadRowError(f"field 'prompt': {error}") from error
    responses: list[TokenIds] = [encode_completion(text, backbone.tokenizer) for text in comparison.responses]
    for response in responses:
        require_length(np.concatenate([prompt, response]).astype(np.int32), max_tokens)
    return prompt, responses
