import math

import numpy as np
import pytest
import torch

from rollout.responses import OpenResponse, ResponseRules
from rollout.sampler import ForcedSampler, ResponseSampler, draw_tokens
from tests.rollout.fakes import prompt_of

INF = math.inf
ENDLESS = ResponseRules(min_tokens=0, max_tokens=99, stop_ids=())
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


def grow(
    logits: list[list[float]], noise: list[list[float]], *, temperature: float = 1.0, rules: ResponseRules = ENDLESS
) -> list[OpenResponse]:
    """Feeds the same logits at each step to one response a row; `noise` is (rows, steps)."""
    responses = [OpenResponse(prompt_of(str(n)), 0, rules, np.array(row)) for n, row in enumerate(noise)]
    sampler = ResponseSampler(temperature)
    for _ in noise[0]:
        sampler.extend(torch.tensor(logits), responses)
    return responses


def test_each_row_draws_with_the_noise_of_its_own_position() -> None:
    shares = [[math.log(0.9), math.log(0.1)], [math.log(0.4), math.log(0.6)]]
    first, second = grow(shares, noise=[[0.95, 0.5], [0.1, 0.5]])
    assert (first.token_ids, second.token_ids) == ([1, 0], [0, 1])
    np.testing.assert_allclose(first.logprobs + second.logprobs, np.log([0.1, 0.9, 0.4, 0.6]), rtol=1e-6)


def test_the_temperature_divides_the_logits_before_the_draw() -> None:
    # At temperature 0.5 the odds 3 : 1 become 9 : 1.
    (response,) = grow([[math.log(3.0), 0.0]], noise=[[0.85, 0.95]], temperature=0.5)
    assert response.token_ids == [0, 1]
    np.testing.assert_allclose(response.logprobs, np.log([0.9, 0.1]), rtol=1e-5)


def test_stop_tokens_are_left_out_of_the_distribution_before_the_minimum() -> None:
    # Token 0 stops. Without it the shares are 0.75 and 0.25; the third step has all three again.
    shares = [[math.log(0.6), math.log(0.3), math.log(0.1)]]
    rules = ResponseRules(min_tokens=2, max_tokens=9, stop_ids=(0,))
    (response,) = grow(shares, noise=[[0.5, 0.8, 0.5]], rules=rules)
    assert response.token_ids == [1, 2, 0]
    np.testing.assert_allclose(response.logprobs, np.log([0.75, 0.25, 0.6]), rtol=1e-5)


def test_rows_may_exclude_different_tokens() -> None:
    def response(min_tokens: int, *stop_ids: int) -> OpenResponse:
        rules = ResponseRules(min_tokens=min_tokens, max_tokens=9, stop_ids=stop_ids)
        return OpenResponse(prompt_of("p"), 0, rules, np.array([LAST_UNIFORM]))

    responses = [response(1, 2), response(0, 2), response(1, 2, 1), response(1, 2)]
    ResponseSampler(1.0).extend(torch.zeros(4, 3), responses)
    assert [response.token_ids for response in responses] == [[1], [2], [0], [1]]


def test_a_response_that_has_ended_takes_no_more_tokens() -> None:
    rules = ResponseRules(min_tokens=0, max_tokens=2, stop_ids=(0,))
    brief, full = grow([[0.0, 0.0]] * 2, noise=[[0.1, 0.9, 0.9], [0.9, 0.9, 0.9]], rules=rules)
    assert (brief.token_ids, brief.finish_reason) == ([0], "stop")
    assert (full.token_ids, full.finish_reason) == ([1, 1], "length")


def test_greedy_search_takes_the_drawn_token_of_each_row() -> None:
    responses = [OpenResponse(prompt_of("p"), 0, ENDLESS, np.array([uniform])) for uniform in (0.95, 0.1)]
    scores = ForcedSampler(responses, 1.0)(torch.empty(0), torch.tensor([[math.log(0.9), math.log(0.1)]] * 2))
    assert scores.argmax(dim=-1).tolist() == [1, 0]
