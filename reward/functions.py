"""Rewards that are a Python function `module:function`: found, checked before the run starts, called.

The function is called as `f(prompts, responses, **arguments)` and returns one number for each response; None or NaN
says that it could not score that one.
"""

import importlib
import inspect
import math
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np

from reward.config import FunctionSource
from reward.interface import Scores

RewardFunction = Callable[..., Sequence[float | None]]


class RewardFunctionError(RuntimeError):
    """A reward function returned something that is not one number for each response."""


def load_function(source: FunctionSource) -> RewardFunction:
    """Imports the function and checks that its arguments fit. Modules of the current folder are found, too.

    Raises:
        ValueError: the module or function does not exist, is not callable, or does not take the configured arguments.
    """
    function = import_function(source, field="reward.function")
    try:
        inspect.signature(function).bind([], [], **source.arguments)
    except TypeError as error:
        raise ValueError(
            f"reward.function={source.function!r}, arguments={source.arguments!r}: {error}; it is called as "
            "f(prompts, responses, **arguments)"
        ) from error
    return cast(RewardFunction, function)


def import_function(source: FunctionSource, *, field: str) -> Callable[..., Any]:
    """The callable that `module:function` names.

    Args:
        source: Its import path.
        field: Configuration key that errors name.

    Raises:
        ValueError: the module or function does not exist, or is not callable.
    """
    module_name, _, name = source.function.partition(":")
    function = getattr(_import(module_name, source.function, field), name, None)
    if not callable(function):
        raise ValueError(
            f"{field}={source.function!r}: module {module_name!r} has no function {name!r}; correct the name"
        )
    return function


def call_function(
    source: FunctionSource, function: RewardFunction, prompts: Sequence[str], responses: Sequence[str]
) -> Scores:
    """(B,) float32, NaN where the function returned None or NaN.

    Raises:
        RewardFunctionError: the answer is not a sequence of B numbers.
    """
    answer: Any = function(list(prompts), list(responses), **source.arguments)
    try:
        values = [math.nan if value is None else float(value) for value in answer]
    except (TypeError, ValueError) as error:
        raise RewardFunctionError(
            f"reward.function={source.function!r} returned {_shortened(answer)}: {error}"
        ) from error
    if len(values) != len(responses):
        raise RewardFunctionError(
            f"reward.function={source.function!r} returned {len(values)} numbers for {len(responses)} responses; "
            "return one for each"
        )
    return np.array(values, dtype=np.float32)


def _import(module_name: str, target: str, field: str) -> Any:
    # A console script does not have the current folder on its path, and that is where a user's own module lies.
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        return importlib.import_module(module_name)
    except ImportError as error:
        raise ValueError(
            f"{field}={target!r}: {error}; install the module, or start in the folder of its file (this is "
            f"{os.getcwd()!r})"
        ) from error


def _shortened(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
