"""Span corruption: text -> an input with sentinels in place of spans, and a target that spells the spans out.

Raffel et al. 2020, section 3.1.4 and figure 2. "Thank you for inviting me to your party last week" with the spans "for
inviting" and "last" becomes

    input    Thank you <0> me to your party <1> week <eos>
    target   <0> for inviting <1> last <2> <eos>

Owns which tokens are noise, and both sides. It knows no model.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

TokenIds = NDArray[np.int32]


def noise_spans(
    length: int, *, noise_density: float, mean_span_tokens: float, rng: np.random.Generator
) -> list[tuple[int, int]]:
    """(start, stop) of each span of noise, in order; never empty, never the first token, never side by side.

    round(length * noise_density) tokens are noise, at least 1 and at most length - 1, in
    round(noise / mean_span_tokens) spans; how both noise and the rest are divided is uniformly random.

    Args:
        length: Tokens of the text, at least 2.
        noise_density: Share of noise.
        mean_span_tokens: Mean length of a span.
        rng: Source of randomness.
    """
    assert length >= 2, "one token cannot be both noise and not"
    noise = min(max(round(length * noise_density), 1), length - 1)
    spans = min(max(round(noise / mean_span_tokens), 1), noise, length - noise)
    kept_parts, noise_parts = _parts(length - noise, spans, rng), _parts(noise, spans, rng)
    found: list[tuple[int, int]] = []
    position = 0
    for kept, span in zip(kept_parts, noise_parts, strict=True):
        found.append((position + kept, position + kept + span))
        position += kept + span
    return found


def corrupt(
    tokens: TokenIds, spans: Sequence[tuple[int, int]], sentinels: Sequence[int], *, end: int
) -> tuple[TokenIds, TokenIds]:
    """Input and target of a text whose `spans` are noise.

    Args:
        tokens: Ids of the text.
        spans: (start, stop) in order.
        sentinels: Ids; one more than there are spans.
        end: Id of the end-of-sequence token.
    """
    source: list[int] = []
    target: list[int] = []
    position = 0
    for sentinel, (start, stop) in zip(sentinels, spans, strict=False):
        source += [*tokens[position:start].tolist(), sentinel]
        target += [sentinel, *tokens[start:stop].tolist()]
        position = stop
    source += [*tokens[position:].tolist(), end]
    target += [sentinels[len(spans)], end]
    return np.array(source, dtype=np.int32), np.array(target, dtype=np.int32)


def _parts(total: int, count: int, rng: np.random.Generator) -> list[int]:
    """`total` divided into `count` positive parts, all divisions equally likely."""
    cuts = np.sort(rng.permutation(total - 1)[: count - 1]) + 1
    return np.diff([0, *cuts.tolist(), total]).tolist()
