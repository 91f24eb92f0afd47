"""Roles with a fate, for actors that are to be lost. Imports little, because every actor imports it."""

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from rollout.types import Completion, Prompt
from rollout.weight_buckets import pack_bucket
from rollout.weight_sync import Ack, UpdateHeader, WeightUpdate, unpack


class Learner:
    """Packs the weights (6, 2) of ones."""

    def pack_update(self, version: int, bucket: int, bucket_bytes: int) -> UpdateHeader:
        weights = {"w": torch.ones(6, 2)}
        self._packed = pack_bucket(weights, version, bucket, bucket_bytes=bucket_bytes, settings={})
        return self._packed.header

    def packed_update(self) -> WeightUpdate:
        return self._packed


class Sampler:
    """Answers with its weights' sum; in its first life it dies or hangs at the prompt "c"."""

    def __init__(self, fate: str, trace: str) -> None:
        self._fate, self._trace = fate, Path(trace)
        self._sum = 0

    def apply_update(self, update: WeightUpdate) -> Ack:
        # Read-only arrays are views of the object store: nobody has copied the bucket on its way here.
        assert not any(array.flags.writeable for array in update.tensors.values())
        self._sum = int(sum(tensor.sum() for tensor in unpack(update).values())) + (self._sum if update.bucket else 0)
        return Ack(update.version, update.checksum)

    def generate(
        self, prompts: Sequence[Prompt], response_indices: Sequence[int], *, seed: int, step: int, expected_version: int
    ) -> list[Completion]:
        del seed, step
        if any(prompt.id == "c" for prompt in prompts) and not self._trace.exists():
            self._trace.touch()
            if self._fate == "dies":
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(600)
        ids, logprobs = np.array([self._sum], np.int32), np.zeros(1, np.float32)
        return [
            Completion(prompt.id, index, ids, logprobs, "stop", expected_version)
            for prompt, index in zip(prompts, response_indices, strict=True)
        ]
