"""The random numbers of sampling, addressed by name instead of drawn from a stream.

Owns the counter-based generator behind every sample and every shuffle of a rollout. A number depends on its key
alone: not on batch size, order, worker count, engine or what was drawn before. It holds no state, so a resumed run
needs none.
"""

import hashlib
import json

import numpy as np
from numpy.typing import NDArray

_KEY_BYTES = 16  # Philox4x64 takes a 128-bit key


def keyed_generator(*key: int | str) -> np.random.Generator:
    """A generator that depends on `key` alone: Philox (Salmon et al. 2011) under the BLAKE2b hash of the key.

    Args:
        key: Integers and strings; ("a", 1) and ("a", "1") are different keys.
    """
    # JSON keeps types and borders apart, so no two keys share an encoding.
    encoded = json.dumps(key).encode()
    digest = hashlib.blake2b(encoded, digest_size=_KEY_BYTES).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))


def uniforms(seed: int, step: int, prompt_id: str, response_index: int, length: int) -> NDArray[np.float64]:
    """(length,) float64 numbers in [0, 1): the noise of one response, one number per token.

    A shorter call returns a prefix of a longer one, so the token budget doesn't change the tokens before it.

    Args:
        seed: Seed of the run.
        step: Rollout phase; the same prompt gets fresh noise in every step.
        prompt_id: `Prompt.id`.
        response_index: Which of the prompt's responses.
        length: How many numbers.
    """
    return keyed_generator("sampling", seed, step, prompt_id, response_index).random(length)
