"""Experience: what PPO trains on, from hand-worked episodes."""

import numpy as np
import pytest

from reward.interface import RewardFailure, RewardOutput
from rlhf.config import AlgorithmConfig, GaeAdvantages, GrpoAdvantages, MissingEosConfig, RlooAdvantages
from rlhf.experience import Experience, NoScoredSamplesError, build_experience
from rlhf.runtime.metric_registry import require_documented
from rollout.types import Completion, FinishReason, Prompt, PromptFailure, RolloutBatch


def _f32(*numbers: float) -> np.ndarray:
    return np.array(numbers, dtype=np.float32)


def _batch(*logprobs: np.ndarray, finish: tuple[FinishReason, ...] | None = None) -> RolloutBatch:
    prompts = [Prompt(id=str(i), text="p", token_ids=np.array([7 + i], np.int32)) for i in range(len(logprobs))]
    reasons: tuple[FinishReason, ...] = finish or ("stop",) * len(logprobs)
    completions = [
        Completion(p.id, 0, np.arange(len(lp), dtype=np.int32), lp, reason, 3)
        for p, lp, reason in zip(prompts, logprobs, reasons, strict=True)
    ]
    return RolloutBatch(prompts, completions)


def _output(*scores: float, failures: tuple[RewardFailure, ...] = ()) -> RewardOutput:
    return RewardOutput(scores=_f32(*scores), components={"s": _f32(*scores)}, failures=failures)


def test_returns_and_metrics_match_values_worked_by_hand() -> None:
    # One response of two tokens, one of one token; gamma 1, lambda 0.5, KL coefficient 0.1.
    # kl a: (-1 - -1.5, -2 - -1) = (0.5, -1.0), sum -0.5; kl b: -0.5 - -2.5 = 2.
    # rewards a: -0.05, 0.1 + 2 = 2.1; b: -0.2 - 1 = -1.2
    # values a: 0.5, 1.0; deltas: -0.05 + 1 - 0.5 = 0.45, 2.1 - 1 = 1.1; advantages 0.45 + 0.5 * 1.1 = 1.0, 1.1
    # returns a: 1.5, 2.1; b: delta -1.2 - 0.3 = -1.5, return -1.2
    experience, metrics = build_experience(
        _batch(_f32(-1, -2), _f32(-0.5)),
        _output(2.0, -1.0),
        [_f32(-1.5, -1), _f32(-2.5)],
        [_f32(0.5, 1.0), _f32(0.3)],
        algorithm=AlgorithmConfig(advantages=GaeAdvantages(gae_lambda=0.5)),
        kl_coefficient=0.1,
    )
    np.testing.assert_allclose(experience.returns[0], [1.5, 2.1], rtol=1e-6)
    np.testing.assert_allclose(experience.returns[1], [-1.2], rtol=1e-6)
    raw = np.array([1.0, 1.1, -1.5])
    whitened = (raw - raw.mean()) / raw.std()
    np.testing.assert_allclose(np.concatenate(experience.advantages), whitened, rtol=1e-5)
    assert metrics["objective/kl"] == pytest.approx((-0.5 + 2.0) / 2)
    assert metrics["objective/scores"] == pytest.approx(0.5)
    assert metrics["objective/scores_std"] == pytest.approx(1.5)
    assert metrics["objective/rlhf_reward"] == pytest.approx((2.05 - 1.2) / 2)
    assert metrics["objective/non_score_reward"] == pytest.approx((0.05 - 0.2) / 2)
    assert metrics["objective/entropy"] == pytest.approx((3 + 0.5) / 2)


def test_a_sample_without_a_score_is_dropped_and_counted_never_scored_zero() -> None:
    arguments = ([_f32(-1.5, -1), _f32(-2.5), _f32(-1)], [_f32(0.5, 1.0), _f32(0.3), _f32(0.2)])
    with_failure, metrics = build_experience(
        _batch(_f32(-1, -2), _f32(-0.5), _f32(-1)),
        _output(2.0, float("nan"), -1.0, failures=(RewardFailure(1, "timeout"),)),
        *arguments,
        algorithm=AlgorithmConfig(),
        kl_coefficient=0.1,
    )
    assert metrics["rollout/dropped"] == 1
    assert len(with_failure) == 2
    assert [p[0] for p in with_failure.prompts] == [7, 9]
    assert metrics["objective/scores"] == pytest.approx(0.5)


def test_a_step_without_any_score_names_the_reasons() -> None:
    with pytest.raises(NoScoredSamplesError, match="timeout"):
        build_experience(
            _batch(_f32(-1)),
            _output(float("nan"), failures=(RewardFailure(0, "timeout"),)),
            [_f32(-1)],
            [_f32(0)],
            algorithm=AlgorithmConfig(),
            kl_coefficient=0.1,
        )


def test_the_missing_eos_penalty_reaches_only_responses_that_were_cut_off() -> None:
    _, metrics = build_experience(
        _batch(_f32(-1), _f32(-1), finish=("stop", "length")),
        _output(1.0, 1.0),
        [_f32(-1), _f32(-1)],
        [_f32(0), _f32(0)],
        algorithm=AlgorithmConfig(missing_eos=MissingEosConfig(rule="penalty", value=3.0)),
        kl_coefficient=0.0,
    )
    assert metrics["objective/scores"] == pytest.approx((1.0 - 2.0) / 2)


def test_the_correlation_of_score_and_length_worked_by_hand() -> None:
    # Lengths 1, 2, 4 (mean 7/3), scores 0, 3, 1 (mean 4/3): covariance sum 2/3, variance sums 14/3 and 14/3.
    _, metrics = build_experience(
        _batch(_f32(-1), _f32(-1, -2), _f32(-1, -2, -1, -2)),
        _output(0.0, 3.0, 1.0),
        [_f32(-1), _f32(-1, -1), _f32(-1, -1, -1, -1)],
        [_f32(0), _f32(0, 0), _f32(0, 0, 0, 0)],
        algorithm=AlgorithmConfig(),
        kl_coefficient=0.1,
    )
    assert metrics["objective/score_length_correlation"] == pytest.approx((2 / 3) / (14 / 3))


@pytest.mark.parametrize(("scores", "lengths"), [((1.0, 1.0), (1, 2)), ((1.0, 2.0), (2, 2)), ((1.0,), (3,))])
def test_there_is_no_correlation_with_what_is_constant(scores: tuple[float, ...], lengths: tuple[int, ...]) -> None:
    rows = [_f32(*([-1.0] * length)) for length in lengths]
    _, metrics = build_experience(
        _batch(*rows), _output(*scores), rows, rows, algorithm=AlgorithmConfig(), kl_coefficient=0.1
    )
    assert "objective/score_length_correlation" not in metrics


def test_responses_that_were_never_generated_count_as_dropped() -> None:
    rows = [_f32(-1), _f32(-2)]
    batch = _batch(*rows)
    failures = [PromptFailure("lost", 4, "ValueError: too long")]
    batch = RolloutBatch(batch.prompts, batch.completions, failures)
    output = _output(1.0, float("nan"), failures=(RewardFailure(1, "timeout"),))
    _, metrics = build_experience(batch, output, rows, rows, algorithm=AlgorithmConfig(), kl_coefficient=0.1)
    assert metrics["rollout/dropped"] == 5


# --- without a critic -------------------------------------------------------------------------------------------------


def _groups_of(*prompt_ids: str) -> RolloutBatch:
    """One response for each id: of 2 tokens for the first, of 1 for the others; log-probs of -1 each."""
    lengths = [2] + [1] * (len(prompt_ids) - 1)
    prompts = [Prompt(id=name, text="p", token_ids=np.array([7], np.int32)) for name in prompt_ids]
    completions = [
        Completion(name, 0, np.arange(length, dtype=np.int32), _f32(*[-1.0] * length), "stop", 3)
        for name, length in zip(prompt_ids, lengths, strict=True)
    ]
    return RolloutBatch(prompts, completions)


def _critic_free(
    batch: RolloutBatch, output: RewardOutput, advantages: RlooAdvantages | GrpoAdvantages
) -> tuple[Experience, dict[str, float]]:
    # The first token's log-prob under the reference is -1.5, all others agree with the policy: KL 0.5 nats.
    reference = [_f32(-1.5, -1.0), *[_f32(-1.0)] * (len(batch) - 1)]
    algorithm = AlgorithmConfig(advantages=advantages)
    return build_experience(batch, output, reference, (), algorithm=algorithm, kl_coefficient=0.2)


def test_each_token_has_its_response_s_leave_one_out_advantage_kl_included() -> None:
    # Rewards: a 3 - 0.2 * 0.5 = 2.9 and 1; b 4, 0 and -1, in turns.
    batch = _groups_of("a", "b", "a", "b", "b")
    experience, metrics = _critic_free(batch, _output(3.0, 4.0, 1.0, 0.0, -1.0), RlooAdvantages())
    expected = [[1.9, 1.9], [4 - (0 - 1) / 2], [-1.9], [0 - (4 - 1) / 2], [-1 - (4 + 0) / 2]]
    for row, wanted in zip(experience.advantages, expected, strict=True):
        np.testing.assert_allclose(row, wanted, rtol=1e-6)
    assert (len(experience.values), len(experience.returns)) == (0, 0)
    assert not any(key.startswith("critic/") for key in metrics)
    assert (metrics["objective/lone_responses"], metrics["objective/equal_score_groups"]) == (0.0, 0.0)
    require_documented(metrics)


def test_a_group_that_lost_members_is_compared_among_the_rest_and_a_lone_response_has_no_advantage() -> None:
    batch = _groups_of("a", "b", "a", "b", "b")
    lost = float("nan")
    experience, metrics = _critic_free(batch, _output(3.0, 4.0, lost, lost, -1.0), RlooAdvantages())
    # Left: the first of a, alone; of b 4 and -1.
    for row, wanted in zip(experience.advantages, [[0.0, 0.0], [5.0], [-5.0]], strict=True):
        np.testing.assert_allclose(row, wanted, rtol=1e-6)
    assert (metrics["objective/lone_responses"], metrics["rollout/dropped"]) == (1.0, 2.0)


def test_grpo_divides_by_the_spread_of_the_group() -> None:
    batch = _groups_of("a", "b", "a", "b", "b")
    output = _output(3.0, 5.0, 1.0, 5.0, 5.0)
    experience, metrics = _critic_free(batch, output, GrpoAdvantages())
    # Of two, each is 1 / sqrt(2) standard deviations away from the mean; of b all are equal.
    for row, wanted in zip(experience.advantages, [[0.7071, 0.7071], [0], [-0.7071], [0], [0]], strict=True):
        np.testing.assert_allclose(row, wanted, rtol=1e-3)
    assert metrics["objective/equal_score_groups"] == 0.5
    centred, _ = _critic_free(batch, output, GrpoAdvantages(divide_by_std=False))
    np.testing.assert_allclose(centred.advantages[0], [0.95, 0.95], rtol=1e-6)
