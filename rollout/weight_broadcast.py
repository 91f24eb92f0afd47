"""Full weights to all rollout workers at once: one collective over the learner and them, instead of a copy for each.

    learner   flatten_update -> manifest     broadcast_update --+-- one group of processes
    worker                                   receive_broadcast -+   (rank 0 is the learner)

Owns the driver's end: who is in the group, the order of the calls, and when a broadcast has failed. A collective cannot
go on without one of its members, so a worker that dies or hangs breaks it for all; the driver then lets everybody take
the same weights through the object store (`weight_feed`), and the group is formed anew, with the new worker, at the
next update. The collective itself belongs to the processes (`rlhf.runtime.broadcast_group`).
"""

import logging
from collections.abc import Callable
from typing import Any

from rollout.calls import PendingCall, WorkerHandle, WorkerLostError
from rollout.flat_bucket import Manifest
from rollout.supervisor import Post, Program, Supervisor
from rollout.weight_sync import require_ack, told_by

logger = logging.getLogger(__name__)


class BroadcastError(RuntimeError):
    """A process cannot reach the others of its group, or is in none; the message says who."""


class WeightBroadcast:
    """The learner and the workers of a pool as one group.

    Args:
        learner: Answers `open_broadcast`, `join_broadcast`, `flatten_update` and `broadcast_update` (`rlhf.roles`).
        bucket_bytes: Size that no bucket exceeds, up to one row of a tensor.
        timeout_seconds: Longest wait of one process for the others.
    """

    def __init__(self, learner: WorkerHandle, *, bucket_bytes: int, timeout_seconds: float) -> None:
        self._learner, self._bucket_bytes, self._timeout_seconds = learner, bucket_bytes, timeout_seconds
        self._members: tuple[int, ...] | None = None

    def send(self, supervisor: Supervisor, version: int) -> int | None:
        """Gives every worker the learner's weights; returns the bytes of them all, None where the broadcast broke.

        Then nobody is known to hold them, and the log says who was lost. Workers that were replaced meanwhile have been
        revived by the supervisor.

        Raises:
            WeightSyncError: if a worker received or holds something else.
            WorkerLostError, RolloutWorkerError: as `Supervisor.run`.
        """
        try:
            if self._members != supervisor.lives:
                self._meet(supervisor)
            return self._send_buckets(supervisor, version)
        except BroadcastError as error:
            self._members = None
            logger.warning("%s; the weights of version %d go through the object store", error, version)
            return None

    def _send_buckets(self, supervisor: Supervisor, version: int) -> int:
        sent = bucket = 0
        buckets = 1
        while bucket < buckets:
            manifest: Manifest = self._ask("flatten_update", version, bucket, self._bucket_bytes)
            sending = self._learner.call("broadcast_update")
            self._all(
                supervisor,
                sending,
                lambda _, manifest=manifest: ("receive_broadcast", manifest),
                lambda post, ack, header=manifest.header: require_ack(post.title, ack, header),
            )
            sent += manifest.header.size_bytes
            bucket, buckets = bucket + 1, manifest.header.buckets
        return sent

    def _meet(self, supervisor: Supervisor) -> None:
        """Forms a new group of the learner, rank 0, and the present workers."""
        lives = supervisor.lives
        count = len(lives) + 1
        address: str = self._ask("open_broadcast", self._timeout_seconds)
        joining = self._learner.call("join_broadcast", address, 0, count, self._timeout_seconds)
        self._all(
            supervisor,
            joining,
            lambda index: ("join_broadcast", address, index + 1, count, self._timeout_seconds),
            _has_joined,
        )
        self._members = lives

    def _ask(self, method: str, *arguments: Any) -> Any:
        return self._learner.call(method, *arguments).result(2 * self._timeout_seconds)

    def _all(
        self,
        supervisor: Supervisor,
        root: PendingCall,
        request: Callable[[int], tuple[Any, ...]],
        check: Callable[[Post, Any], None],
    ) -> None:
        """One step that all take together: the learner's call, which runs already, and one on every worker.

        Args:
            supervisor: Of the workers.
            root: The learner's answer.
            request: Method and arguments for the worker of an index.
            check: Looks at a worker's answer.

        Raises:
            BroadcastError: if one of them was lost, or could not reach the others.
        """
        failures: dict[str, str] = {}
        called: list[str] = []

        def program(post: Post) -> Program:
            if post.name in called:
                return  # Its worker is a new one, in no group, and has been revived.
            method, *arguments = request(len(called))
            called.append(post.name)
            call = post.call(method, *arguments)
            try:
                yield call
                with told_by(post.title):
                    answer = call.answer()
            except WorkerLostError as loss:
                failures[post.title] = str(loss)
                raise
            except BroadcastError as error:
                failures[post.title] = str(error)
            else:
                check(post, answer)

        supervisor.run(program)
        try:
            # The others wait as long for the learner as it does for them, and some time must be left to say so.
            root.result(2 * self._timeout_seconds)
        except BroadcastError as error:
            failures[f"learner {self._learner.name}"] = str(error)
        if failures:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in failures.items())
            raise BroadcastError(f"broadcast of weights: {reasons}")


def _has_joined(post: Post, answer: None) -> None:
    """That a worker answers `join_broadcast` is all there is to know."""
    del post, answer
