"""Float32 masters behind bfloat16 weights: what rounds away without them, and what a gradient sums up to."""

import pytest
import torch
from torch.nn import Parameter

from rlhf.master_weights import MasterWeights


def weights_of(*values: float, dtype: torch.dtype = torch.bfloat16) -> Parameter:
    return Parameter(torch.tensor(values, dtype=dtype))


def test_a_float32_parameter_is_its_own_master():
    parameter = weights_of(1.0, dtype=torch.float32)
    masters = MasterWeights([("w", parameter)])
    assert masters.parameters[0][1] is parameter
    assert masters.state() == {}


def test_updates_that_would_each_round_away_add_up():
    weight = weights_of(1.0)
    masters = MasterWeights([("w", weight)])
    optimizer = torch.optim.SGD([parameter for _, parameter in masters.parameters], lr=1e-3)
    for _ in range(10):
        weight.backward(torch.tensor([-1.0], dtype=torch.bfloat16))
        masters.collect()
        optimizer.step()
        optimizer.zero_grad()
        masters.publish()
    assert masters.parameters[0][1].item() == pytest.approx(1.01, abs=1e-6)
    # The next number of bfloat16 above 1 is 1.0078.
    assert weight.item() == 1.0078125
    assert (torch.tensor(1.0).bfloat16() + torch.tensor(1e-3).bfloat16()).item() == 1.0


def test_gradients_of_several_passes_are_summed_in_float32_and_leave_the_parameter():
    weight = weights_of(1.0, 2.0)
    masters = MasterWeights([("w", weight)])
    for gradient in ([256.0, 1.0], [1.0, 2.0], [1.0, 4.0]):
        weight.backward(torch.tensor(gradient, dtype=torch.bfloat16))
        masters.collect()
    # In bfloat16, 256 + 1 is 256.
    assert masters.parameters[0][1].grad is not None
    assert masters.parameters[0][1].grad.tolist() == [258.0, 7.0]
    assert weight.grad is None


def test_the_state_continues_where_it_was_taken():
    weight = weights_of(1.0)
    masters = MasterWeights([("w", weight)])
    with torch.no_grad():
        masters.parameters[0][1].fill_(1.003)
    state = {name: tensor.clone() for name, tensor in masters.state().items()}
    fresh = MasterWeights([("w", weights_of(1.0))])
    fresh.load_state(state)
    assert fresh.state()["w"].item() == pytest.approx(1.003)
    with pytest.raises(ValueError, match="float32 masters"):
        fresh.load_state({})
