"""The decoding loop: slots that are never idle while a response waits.

Owns who decodes when. A response that ends leaves its slot to the next one in the same step; when none waits, the last
row moves into the hole, so that a step costs what its open responses cost.
"""

from collections.abc import Iterator, Sequence
from itertools import groupby, islice

import torch

from policies.backbone import Backbone
from rollout.decode_step import DecodeStep
from rollout.prefill import PrefilledPrompt
from rollout.responses import OpenResponse
from rollout.sampler import ResponseSampler
from rollout.slot_cache import SlotCache

Starter = tuple[OpenResponse, PrefilledPrompt]


class ContinuousDecoder:
    """Samples responses until all have ended.

    Args:
        backbone: The model, with what adapter is active.
        temperature: Of sampling.
        slots: Responses decoded side by side.
        step: What computes their next logits.
    """

    def __init__(self, backbone: Backbone, *, temperature: float, slots: int, step: DecodeStep) -> None:
        self._backbone, self._slots, self._decode = backbone, slots, step
        self._sampler = ResponseSampler(temperature)
        layers = backbone.model.config.get_text_config(decoder=True).num_hidden_layers
        self._cache = SlotCache(layers=layers, slots=slots, device=backbone.device)
        self._open: list[OpenResponse] = []

    def run(self, waiting: Iterator[Starter]) -> None:
        """Decodes all that waits; the responses hold the result."""
        while True:
            self._fill(waiting)
            if not self._open:
                return
            self._step()

    def _fill(self, waiting: Iterator[Starter]) -> None:
        """Gives the free slots away. The first token comes from the prompt's last state and may end a response."""
        while starters := list(islice(waiting, self._slots - len(self._open))):
            states = torch.stack([prompt.state for _, prompt in starters])
            logits = self._backbone.output_layer(states).float()
            self._sampler.extend(logits, [response for response, _ in starters])
            self._insert([starter for starter in starters if starter[0].finish_reason is None])

    def _insert(self, starters: Sequence[Starter]) -> None:
        # Neighbours of one bucket and length share a copy operation.
        for (_, tokens), group in groupby(starters, key=lambda starter: (id(starter[1].layers), starter[1].tokens)):
            members = list(group)
            self._cache.insert(members[0][1].layers, [prompt.row for _, prompt in members], tokens)
            self._open += [response for response, _ in members]

    def _step(self) -> None:
        """One token for every open response."""
        device = self._backbone.device
        last = torch.tensor([[response.token_ids[-1]] for response in self._open], device=device)
        virtual = self._backbone.virtual_tokens
        positions = torch.tensor([[virtual + response.position] for response in self._open], device=device)
        mask = self._cache.open_column()
        self._sampler.extend(self._decode(last, positions, mask, self._cache), self._open)
        self._remove([row for row, response in enumerate(self._open) if response.finish_reason is not None])

    def _remove(self, rows: Sequence[int]) -> None:
        for source, target in self._cache.remove(rows):
            self._open[target] = self._open[source]
        del self._open[self._cache.live :]
