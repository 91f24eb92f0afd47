import math

import numpy as np
import pytest
import torch

from rollout.config import SamplingConfig
from rollout.sampler import ForcedSampler, draw_tokens

INF = math.inf
LAST_UNIFORM = 1 - 2**-53
"""The largest number below 1 that float64 can hold."""


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64).unsqueeze(1)


def test_a_uniform_number_picks_the_token_whose_share_of_the_unit_interval_it_falls_into() -> None:
    # Shares: token 0 [0, 0.2), token 1 [0.2, 0.7), token 2 [0.7, 1).
    uniforms = column(0.0, 0.19, 0.21, 0.69, 0.71, LAST_UNIFORM)
    logits = torch.tensor([0.2, 0.5, 0.3]).log().expand(6, 3) + 5.0  # a constant shift changes nothing

    tokens, logprobs = draw_tokens(logits, uniforms)

    assert tokens.squeeze(1).tolist() == [0, 0, 1, 1, 2, 2]
    expected = [math.log(p) for p in (0.2, 0.2, 0.5, 0.5, 0.3, 0.3)]
    torch.testing.assert_close(logprobs.squeeze(1), torch.tensor(expected))


def test_evenly_spread_uniforms_reproduce_the_softmax_exactly() -> None:
    logits = torch.tensor([1.0, -2.0, 0.5, 3.0, -INF, 0.0])
    n = 10_000
    tokens, _ = draw_tokens(logits.expand(n, 6), (torch.arange(n, dtype=torch.float64) + 0.5).unsqueeze(1) / n)
    counts = torch.bincount(tokens.squeeze(1), minlength=6)
    assert (counts - n * torch.softmax(logits, 0)).abs().max() <= 1


@pytest.mark.parametrize("uniform", [0.0, 0.5, LAST_UNIFORM])
def test_an_excluded_token_is_never_drawn_wherever_it_stands(uniform: float) -> None:
    tokens, _ = draw_tokens(torch.tensor([[-INF, 0.3, -INF, 0.1, -INF]]), column(uniform))
    assert tokens.item() in (1, 3)


def test_shares_that_round_to_a_sum_below_one_leave_no_gap_at_the_end() -> None:
    logits = torch.randn(200, 50, generator=torch.Generator().manual_seed(0))
    logits[:, -1] = -INF
    assert (torch.softmax(logits, dim=-1).sum(dim=-1, dtype=torch.float64) < LAST_UNIFORM).any()
    tokens, logprobs = draw_tokens(logits, column(*[LAST_UNIFORM] * 200))
    assert (tokens == 48).all()
    assert logprobs.isfinite().all()


def test_the_end_of_a_large_vocabulary_is_reached_and_not_passed() -> None:
    # 50,257 equal shares: a float32 sum would end away from 1 and lose or invent the last tokens.
    vocabulary = 50_257
    uniforms = column((vocabulary - 1.5) / vocabulary, (vocabulary - 0.5) / vocabulary, LAST_UNIFORM)
    tokens, _ = draw_tokens(torch.zeros(3, vocabulary), uniforms)
    assert tokens.squeeze(1).tolist() == [vocabulary - 2, vocabulary - 1, vocabulary - 1]


def test_a_row_draws_the_same_alone_as_in_a_batch() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(17, 101, generator=generator)
    uniforms = torch.rand(17, 1, generator=generator, dtype=torch.float64)
    together = draw_tokens(logits, uniforms)
    for row in range(17):
        alone = draw_tokens(logits[row : row + 1], uniforms[row : row + 1])
        assert alone[0].item() == together[0][row].item()
        torch.testing.assert_close(alone[1][0], together[1][row])


def test_a_workspace_changes_nothing_but_where_the_sums_are_kept() -> None:
    logits, uniforms = torch.randn(4, 9, generator=torch.Generator().manual_seed(0)), column(0.1, 0.4, 0.6, 0.9)
    workspace = torch.full((4, 9), math.nan, dtype=torch.float64)
    for received, expected in zip(
        draw_tokens(logits, uniforms, workspace=workspace), draw_tokens(logits, uniforms), strict=True
    ):
        assert torch.equal(received, expected)


def test_logits_with_nan_show_in_the_log_probability() -> None:
    _, logprobs = draw_tokens(torch.tensor([[0.0, math.nan, 1.0], [0.0, 0.0, 0.0]]), column(0.5, 0.5))
    assert logprobs.isnan().squeeze(1).tolist() == [True, False]


def forced(
    scores: list[list[float]], noise: list[list[float]], **sampling: float
) -> tuple[list[list[int]], np.ndarray]:
    """Feeds the same scores at each step; returns tokens and log-probs as (steps, rows)."""
    config = SamplingConfig.model_validate({"max_response_tokens": len(noise)} | sampling)
    sampler = ForcedSampler(torch.tensor(noise, dtype=torch.float64).unsqueeze(-1), config, stop_ids=(0,))
    tokens = [sampler(torch.empty(0), torch.tensor(scores)).argmax(dim=-1).tolist() for _ in noise]
    return tokens, sampler.logprobs.numpy()


def test_greedy_search_takes_the_drawn_token_of_each_step_and_row() -> None:
    shares = [[math.log(0.9), math.log(0.1)], [math.log(0.4), math.log(0.6)]]
    tokens, logprobs = forced(shares, noise=[[0.95, 0.1], [0.5, 0.5]])
    assert tokens == [[1, 0], [0, 1]]
    np.testing.assert_allclose(logprobs, np.log([[0.1, 0.4], [0.9, 0.6]]), rtol=1e-6)


def test_the_temperature_divides_the_logits_before_the_draw() -> None:
    # At temperature 0.5 the odds 3 : 1 become 9 : 1.
    tokens, logprobs = forced([[math.log(3.0), 0.0]], noise=[[0.85], [0.95]], temperature=0.5)
    assert tokens == [[0], [1]]
    np.testing.assert_allclose(logprobs[:, 0], np.log([0.9, 0.1]), rtol=1e-5)


def test_stop_tokens_are_left_out_of_the_distribution_before_the_minimum() -> None:
    # Token 0 stops. Without it the shares are 0.75 and 0.25; the third step has all three again.
    shares = [[math.log(0.6), math.log(0.3), math.log(0.1)]]
    tokens, logprobs = forced(shares, noise=[[0.5], [0.8], [0.5]], min_response_tokens=2)
    assert tokens == [[1], [2], [0]]
    np.testing.assert_allclose(logprobs[:, 0], np.log([0.75, 0.25, 0.6]), rtol=1e-5)
