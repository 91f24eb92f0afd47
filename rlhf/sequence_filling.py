"""Which documents share a training sequence. Owns the division only; the model keeps them apart."""

from collections.abc import Sequence

OPEN_SEQUENCES = 32
"""Sequences that still take documents at the same time; more fill slightly better and cost time."""


def fill_sequences(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Indices in groups of at most `capacity` tokens, by first fit in the given order.

    Each document goes into the first of the open groups that has room, else into a new one; of more than
    `OPEN_SEQUENCES` the oldest is closed. Example: 5, 4, 3, 2 tokens with room for 7 are [0, 3] and [1, 2].

    Args:
        lengths: Tokens of each document, at most `capacity`.
        capacity: Tokens of a group.
    """
    groups: list[list[int]] = []
    room: dict[int, int] = {}
    for index, length in enumerate(lengths):
        assert length <= capacity, f"document {index} has {length} tokens, a sequence {capacity}"
        place = next((place for place, free in room.items() if free >= length), None)
        if place is None:
            place = len(groups)
            groups.append([])
            room[place] = capacity
            if len(room) > OPEN_SEQUENCES:
                del room[min(room)]
        groups[place].append(index)
        room[place] -= length
    return groups
