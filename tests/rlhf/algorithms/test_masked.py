"""Masked reductions and whitening, against values worked by hand and plain loops."""

import math
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf.algorithms.masked import masked_mean, masked_sum, masked_variance, token_mean, whiten, zero_outside

VALUES = torch.tensor([[1.0, 2.0, 9.0], [4.0, -7.0, 9.0]])
MASK = torch.tensor([[True, True, False], [True, False, False]])

masked_rows = st.lists(st.tuples(st.floats(-100, 100), st.booleans()), min_size=1, max_size=12).filter(
    lambda row: any(selected for _, selected in row)
)


def test_sum_and_mean_count_only_selected_positions():
    # 1 + 2 + 4 = 7, over 3 positions; rows: 1 + 2 = 3 over 2, 4 over 1.
    assert masked_sum(VALUES, MASK).item() == 7.0
    assert masked_mean(VALUES, MASK).item() == pytest.approx(7 / 3)
    assert masked_sum(VALUES, MASK, dim=1).tolist() == [3.0, 4.0]
    assert masked_mean(VALUES, MASK, dim=1).tolist() == [1.5, 4.0]


def test_variance_is_the_biased_one():
    # Mean 7/3, deviations -4/3, -1/3, 5/3; squares sum to 42/9; divided by 3 (not 2): 14/9.
    assert masked_variance(VALUES, MASK).item() == pytest.approx(14 / 9)


def test_variance_of_one_selected_position_is_zero():
    assert masked_variance(torch.tensor([3.0, 8.0]), torch.tensor([True, False])).item() == 0.0


def test_whitening_matches_values_worked_by_hand():
    # Deviations (-4, -1, 5) / 3 over a standard deviation of sqrt(14) / 3.
    expected = torch.tensor([[-4.0, -1.0, 0.0], [5.0, 0.0, 0.0]]) / math.sqrt(14)
    torch.testing.assert_close(whiten(VALUES, MASK), expected)


def test_whitening_without_subtracting_the_mean_keeps_it_inside_the_mask_only():
    expected = torch.tensor([[-4.0, -1.0, 0.0], [5.0, 0.0, 0.0]]) / math.sqrt(14) + 7 / 3 * MASK
    torch.testing.assert_close(whiten(VALUES, MASK, subtract_mean=False), expected)


def test_epsilon_is_added_to_the_variance_not_to_the_deviation():
    # Values 0 and 4: variance 4; with epsilon 5 the divisor is sqrt(9) = 3, so -2/3 and 2/3.
    whitened = whiten(torch.tensor([0.0, 4.0]), torch.tensor([True, True]), epsilon=5.0)
    torch.testing.assert_close(whitened, torch.tensor([-2 / 3, 2 / 3]))


def test_whitening_equal_values_gives_zeros():
    assert whiten(torch.full((2, 3), 5.0), MASK).eq(0).all()


@settings(max_examples=40, deadline=None)
@given(masked_rows)
def test_reductions_agree_with_a_plain_loop(row: list[tuple[float, bool]]):
    values = torch.tensor([value for value, _ in row], dtype=torch.float64)
    mask = torch.tensor([selected for _, selected in row])
    kept = [value for value, selected in row if selected]
    assert masked_sum(values, mask).item() == pytest.approx(math.fsum(kept), abs=1e-9)
    assert masked_mean(values, mask).item() == pytest.approx(statistics.fmean(kept), abs=1e-9)
    assert masked_variance(values, mask).item() == pytest.approx(statistics.pvariance(kept), abs=1e-8)


@settings(max_examples=40, deadline=None)
@given(masked_rows)
def test_whitening_agrees_with_a_plain_loop(row: list[tuple[float, bool]]):
    kept = [value for value, selected in row if selected]
    mean, scale = statistics.fmean(kept), math.sqrt(statistics.pvariance(kept) + 1e-8)
    expected = [(value - mean) / scale if selected else 0.0 for value, selected in row]
    whitened = whiten(
        torch.tensor([value for value, _ in row], dtype=torch.float64), torch.tensor([selected for _, selected in row])
    )
    torch.testing.assert_close(whitened, torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("junk", [math.nan, math.inf, -math.inf])
def test_values_outside_the_mask_reach_no_result_and_no_gradient(junk: float):
    values = torch.where(MASK, VALUES, junk).requires_grad_()
    results = [masked_sum(values, MASK), masked_mean(values, MASK), masked_variance(values, MASK)]
    clean = [masked_sum(VALUES, MASK), masked_mean(VALUES, MASK), masked_variance(VALUES, MASK)]
    torch.testing.assert_close(results, clean)
    torch.testing.assert_close(whiten(values, MASK), whiten(VALUES, MASK))
    zero_outside(values, MASK).square().sum().backward()
    assert values.grad is not None
    torch.testing.assert_close(values.grad, 2 * VALUES * MASK)


def test_shares_with_the_whole_count_add_up_to_the_mean():
    # Rows hold 2 and 1 tokens of 3: 3/3 + 4/3 = 7/3. The mean of the two rows' means, 2.75, would be wrong.
    shares = [token_mean(VALUES[row], MASK[row], 3) for row in (0, 1)]
    assert [share.item() for share in shares] == pytest.approx([1.0, 4 / 3])
    torch.testing.assert_close(shares[0] + shares[1], masked_mean(VALUES, MASK))
    torch.testing.assert_close(token_mean(VALUES, MASK), masked_mean(VALUES, MASK))


def test_share_takes_a_tensor_count_and_an_empty_micro_batch():
    nothing = torch.zeros_like(MASK)
    assert token_mean(VALUES, MASK, torch.tensor(14)).item() == 0.5
    assert token_mean(VALUES, nothing, 14).item() == 0.0


@pytest.mark.parametrize("reduction", [masked_mean, masked_variance, whiten, token_mean])
def test_an_empty_mask_is_refused_where_the_result_would_be_nan(reduction):
    with pytest.raises(ValueError, match="selects nothing"):
        reduction(VALUES, torch.zeros_like(MASK))


def test_one_empty_row_is_refused_by_a_mean_over_rows():
    with pytest.raises(ValueError, match="selects nothing along dim=1"):
        masked_mean(VALUES, torch.tensor([[True, True, True], [False, False, False]]), dim=1)


def test_the_sum_of_nothing_is_zero():
    assert masked_sum(VALUES, torch.zeros_like(MASK)).item() == 0.0


def test_a_mask_that_would_broadcast_is_refused():
    with pytest.raises(ValueError, match=r"values has shape \(2, 3\) but mask has shape \(2, 1\)"):
        masked_sum(VALUES, MASK[:, :1])


def test_a_mask_of_numbers_is_refused():
    with pytest.raises(ValueError, match=r"mask has dtype torch.int64.*mask.bool\(\)"):
        masked_sum(VALUES, MASK.long())


@pytest.mark.parametrize("token_count", [0, -3])
def test_a_token_count_below_one_is_refused(token_count: int):
    with pytest.raises(ValueError, match=f"token_count is {token_count}"):
        token_mean(VALUES, MASK, token_count)
