import pytest
import torch

from policies.scalar_head import ScalarHead


def test_the_output_is_a_weighted_sum_plus_bias():
    head = ScalarHead.from_tensors(torch.tensor([[1.0, -2.0, 0.5]]), torch.tensor(0.25))

    # 2 - 2 + 2 + 0.25, and 0 + 2 + 0 + 0.25.
    assert head(torch.tensor([[2.0, 1.0, 4.0], [0.0, -1.0, 0.0]])).tolist() == [2.25, 2.25]


def test_a_head_without_seed_outputs_zero():
    assert torch.equal(ScalarHead(8)(torch.randn(2, 3, 8)), torch.zeros(2, 3))


def test_a_seeded_head_has_the_standard_deviation_of_the_paper_and_no_bias():
    head = ScalarHead(9999, seed=1)

    assert float(head.weight.detach().std()) == pytest.approx(0.01, rel=0.05)
    assert head.bias.item() == 0
    assert torch.equal(head.weight, ScalarHead(9999, seed=1).weight)
    assert not torch.equal(head.weight, ScalarHead(9999, seed=2).weight)


def test_normalisation_is_folded_into_the_head():
    head = ScalarHead.from_tensors(torch.tensor([1.0, -2.0]), torch.tensor(3.0))
    states = torch.tensor([[4.0, 1.0], [0.0, 0.0]])  # scores 5 and 3

    assert head.normalized(mean=4.0, std=0.5)(states).tolist() == [2.0, -2.0]
    assert head(states).tolist() == [5.0, 3.0]


@pytest.mark.parametrize("std", [0.0, -1.0, float("nan")])
def test_normalisation_without_spread_is_refused(std: float):
    with pytest.raises(ValueError, match="must be above 0"):
        ScalarHead(2, seed=0).normalized(mean=0.0, std=std)


def test_the_head_works_in_float32_and_owns_its_weights():
    weight = torch.ones(2, dtype=torch.bfloat16)
    head = ScalarHead.from_tensors(weight)
    weight.zero_()

    output = head(torch.ones(3, 2, dtype=torch.bfloat16))

    assert output.dtype == torch.float32
    assert output.tolist() == [2.0, 2.0, 2.0]
