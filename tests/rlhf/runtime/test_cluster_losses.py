"""A rollout pool on Ray actors that are killed or hang in mid-batch."""

from pathlib import Path

import pytest

from rlhf.runtime.cluster import ActorRequest, ray_workers
from rlhf.runtime.placement import Resources
from rollout.generation import repeat_prompts
from rollout.pool import RolloutPool
from rollout.weight_feed import WeightFeed
from tests.rlhf.runtime.fated_roles import Learner, Sampler
from tests.rollout.fakes import prompt_of

PATIENCE = 120.0
SMALL = Resources(0.1, 0.0)
JOBS = repeat_prompts([prompt_of(letter) for letter in "abcd"], 2)


@pytest.mark.ray
@pytest.mark.timeout(240)
@pytest.mark.usefixtures("ray_cluster")
def test_workers_that_die_or_hang_are_replaced_and_nothing_of_the_batch_is_lost(tmp_path: Path) -> None:
    requests = [ActorRequest("learner", SMALL, Learner, {})] + [
        ActorRequest(fate, SMALL, Sampler, {"fate": fate, "trace": str(tmp_path / fate)}) for fate in ("dies", "hangs")
    ]
    with ray_workers(requests, Resources(2.0, 0.0), timeout_seconds=PATIENCE) as (learner, *samplers):
        weights = WeightFeed(learner, 3, bucket_bytes=16, timeout_seconds=PATIENCE, is_snapshot=False)
        for sampler in samplers:
            pool = RolloutPool(
                [sampler],
                timeout_seconds=PATIENCE if sampler.name == "dies" else 4.0,
                start_timeout_seconds=PATIENCE,
                responses_per_call=2,
                calls_in_flight=2,
                max_worker_restarts=1,
            )
            assert pool.update_weights(weights) == 6 * 2 * 4
            batch = pool.generate(*JOBS, seed=1, step=2, policy_version=3)
            assert [(c.prompt_id, c.response_index) for c in batch.completions] == [
                (p, i) for p in "abcd" for i in (0, 1)
            ]
            # The second life has all three buckets of the weights, too.
            assert {completion.token_ids[0] for completion in batch.completions} == {12}
            assert (tmp_path / sampler.name).exists()
            assert pool.drain_metrics() == {"rollout/restarts": 1.0, "rollout/retries": 2.0}
