"""A PPO job with a real vLLM as its sampler, in an actor of its own."""

from pathlib import Path

import pytest

from tests.tiny_ppo import metrics_of, ppo_config, run_ppo

pytest.importorskip("vllm", reason="vLLM is not installed; `make test-vllm` runs these in an environment of their own")


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_ppo_on_vllm_takes_the_same_steps_as_on_our_own_engine(
    tmp_path: Path, llama_folder: Path, ray_cluster: None
) -> None:
    del ray_cluster
    for name in ("vllm", "compiled"):
        (tmp_path / name).mkdir()
    placement = {"kind": "split", **{role: {"cpus": 0.5} for role in ("rollout", "reward", "reference", "learner")}}
    # Adam turns rounding into whole steps where gradients are near 0; a small rate keeps that below the tolerance.
    changes = {
        "optimizer": {"learning_rate": 1e-3},
        "critic": {"optimizer": {"learning_rate": 1e-3}},
        "steps": 2,
        "reward": [{"kind": "regex", "pattern": "e"}],
    }
    ours = metrics_of(run_ppo(ppo_config(tmp_path / "compiled", llama_folder, **changes)))
    theirs = metrics_of(
        run_ppo(
            ppo_config(
                tmp_path / "vllm", llama_folder, **changes, placement=placement, rollout={"engine": {"kind": "vllm"}}
            )
        )
    )
    assert ours[0]["objective/scores_std"] > 0, "without a spread of scores there is nothing to learn"
    for our, their in zip(ours, theirs, strict=True):
        assert their["sync/canary_max_logprob_diff"] < 1e-3
        assert their["policy/first_step_ratio_error"] < 1e-3
        for key in ("objective/scores", "objective/kl", "rollout/response_length_mean", "loss/policy", "loss/value"):
            assert their[key] == pytest.approx(our[key], abs=1e-3), key
