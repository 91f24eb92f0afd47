"""Decoding in several threads of one process, each with responses and a cache of its own.

Owns who decodes in which lane, and the threads. A step of few rows is made of hundreds of short operations; splitting
each of them over two cores keeps these busy for 70 % of the time (30M parameters, 64 rows): Python and the shortest
operations keep to one. Lanes wait for nobody: operators release Python's lock, and all read the same weights. They read
them once each, which costs a tenth more processor time, so that on a core shared with others they gain nothing.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import nn
from transformers import PreTrainedModel

from rollout.prefill import by_prompt
from rollout.responses import OpenResponse

ROWS_PER_LANE = 32
"""Fewest rows of a lane: with fewer, a matrix product takes as long for reading the weights as for the rows."""
PRODUCTS_PER_LANE = 2**23
"""Fewest multiplications with weights that a lane does in one layer. With fewer, most of a step is Python's own work,
of which all lanes together do one piece at a time."""


def lane_count(model: PreTrainedModel, rows: int) -> int:
    """How many lanes pay for so many rows side by side; 1 off the CPU, where one stream keeps the device busy.

    Args:
        model: One whose rotary frequencies follow the longest row of a pass, kept in a buffer that all lanes would
            share, stays in one lane.
        rows: Responses decoded side by side, in all lanes together.
    """
    if model.device.type != "cpu" or any(_changes_with_length(module) for module in model.modules()):
        return 1
    layers = model.config.get_text_config(decoder=True).num_hidden_layers
    weights = model.num_parameters(exclude_embeddings=True) // layers
    fewest = max(ROWS_PER_LANE, -(-PRODUCTS_PER_LANE // weights))
    return max(1, min(torch.get_num_threads(), rows // fewest))


def deal(responses: Sequence[OpenResponse], lanes: int) -> list[list[OpenResponse]]:
    """One share for each lane: equal prompts stay together, and long ones are dealt out first.

    The shares depend on prompts alone, so that a lane computes the same whatever time the others take.
    """
    shares: list[list[OpenResponse]] = [[] for _ in range(lanes)]
    for group in sorted(by_prompt(responses), key=lambda group: -len(group[0].prompt.token_ids)):
        min(shares, key=len).extend(group)
    return [share for share in shares if share]


def run_lanes(decode: Callable[[list[OpenResponse]], None], shares: Sequence[list[OpenResponse]]) -> None:
    """Calls `decode` with every share, in a thread each, among which torch's threads are divided."""
    if len(shares) < 2:
        for share in shares:
            decode(share)
        return
    threads = torch.get_num_threads()

    def run(lane: int) -> None:
        torch.get_num_threads()  # A thread's first operation would take over what another lane has set last.
        torch.set_num_threads(max(1, (threads + lane) // len(shares)))
        decode(shares[lane])

    try:
        with ThreadPoolExecutor(len(shares), thread_name_prefix="rollout-lane") as executor:
            for lane in [executor.submit(run, lane) for lane in range(len(shares))]:
                lane.result()
    finally:
        # The setting is a thread's own, but also what threads that begin later take.
        torch.set_num_threads(threads)


def _changes_with_length(module: nn.Module) -> bool:
    # A name, or one for each type of layer.
    rope_type = str(getattr(module, "rope_type", ""))
    return "dynamic" in rope_type or "longrope" in rope_type
