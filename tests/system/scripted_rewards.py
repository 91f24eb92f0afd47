"""Reward functions with a script: each depends on the responses alone; `score` ends at the call that is named."""

import math
import os

calls = 0
"""How often `score` was called in this process."""


def score(prompts: list[str], responses: list[str]) -> list[float]:
    """Ends as by Ctrl-C at call INTERRUPT_AT_CALL of the environment."""
    del prompts
    global calls
    calls += 1
    if os.environ.get("INTERRUPT_AT_CALL") == str(calls):
        raise KeyboardInterrupt
    return [float(len(response) % 5) for response in responses]


def vowels(prompts: list[str], responses: list[str]) -> list[float]:
    """Dense enough for a random model to learn from."""
    del prompts
    return [sum(letter in "aeiou" for letter in response) / 4 for response in responses]


def nothing(prompts: list[str], responses: list[str]) -> list[float | None]:
    """All that a function can return for a response it could not score."""
    del prompts
    return [(math.nan, math.inf, None)[index % 3] for index in range(len(responses))]


def some(prompts: list[str], responses: list[str]) -> list[float | None]:
    """Fails on every other response; the rest get 1, 3, 5, ..."""
    del prompts
    return [None if index % 2 else 1.0 + index for index in range(len(responses))]
