"""Decoder layers that are cut over the processes of a group, for models beyond one device (FSDP2).

Every process holds 1/N of each layer and fetches the rest for the time of a pass through it (Zhao et al. 2023,
arXiv:2304.11277); what a layer computes, and the kernels that compute it, stay the same. Owns the cut, and the way of
a tensor into it and out of it. Embeddings, final norm, output layer and adapters stay whole: they are small beside the
layers, and the output layer is read in chunks whose number differs between processes. Gradients of what is cut are
summed over the processes by the backward pass; those of the rest are the caller's to sum.
"""

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn import Parameter
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer


def shard_layers(model: PreTrainedModel, *, whole_parameters: set[Parameter], device: torch.device) -> None:
    """Cuts the layers over all processes of the default group, and moves everything to this process' device.

    A model in the memory of the CPU is moved layer by layer, so a device never holds more than its parts and a layer.

    Args:
        model: The same in every process. Gradients are let in afterwards, and before the next pass.
        whole_parameters: What stays whole inside of layers: adapters.
        device: Where this process computes.

    Raises:
        ValueError: the architecture has no layers that are known as such.
    """
    layers = [layer for layer in model.base_model.modules() if isinstance(layer, GradientCheckpointingLayer)]
    if not layers:
        raise ValueError(
            f"placement.learner.sharding=full: {type(model).__name__} has no decoder layers that can be told apart; "
            "set it to none"
        )
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    in_float32 = MixedPrecisionPolicy(reduce_dtype=torch.float32)
    for layer in layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=True, mp_policy=in_float32, ignored_params=whole_parameters)
    _move_what_is_whole(model, device)
    # The root owns nothing: it lets a layer be fetched while the one before it computes.
    rest = {parameter for parameter in model.parameters() if not isinstance(parameter, DTensor)}
    fully_shard(model.base_model, mesh=mesh, ignored_params=rest)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            # A sum over processes; by default it is a mean. Gloo has no sum with a factor.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(enable=True)


def whole(tensor: Tensor) -> Tensor:
    """The tensor itself; of one that is cut, all of it, for which every process must ask at the same time."""
    if not isinstance(tensor, DTensor):
        return tensor
    if tensor.dtype == torch.int16:  # Gloo moves no integers of this size; bits are bits.
        return whole(wrap_part(tensor.to_local().view(torch.bfloat16), like=tensor)).view(torch.int16)
    return tensor.full_tensor()


def whole_tensors(tensors: Mapping[str, Tensor], *, keep: bool) -> dict[str, Tensor]:
    """Tensors of which none is cut: those that are, gathered on the CPU one after the other; the others as they come.

    Args:
        tensors: The same names in every process, all of which must ask.
        keep: False only takes part in gathering, and leaves the gathered out.
    """
    gathered: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        complete = whole(tensor)
        if complete is tensor:
            gathered[name] = tensor
        elif keep:
            gathered[name] = complete.cpu()
    return gathered


def part(tensor: Tensor) -> Tensor:
    """What this process holds of the tensor, in the same memory; all of one that is not cut."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def wrap_part(local: Tensor, *, like: Tensor) -> Tensor:
    """This process' part of a tensor that is cut as `like`, as that tensor; `local` itself where `like` is not cut."""
    if not isinstance(like, DTensor) or local.shape != like.to_local().shape:
        return local
    return DTensor.from_local(local, like.device_mesh, like.placements, shape=like.shape, stride=like.stride())


def part_of(tensor: Tensor, *, like: Tensor) -> Tensor:
    """The part of a whole tensor that this process holds of `like`; communicates nothing."""
    if not isinstance(like, DTensor) or tensor.shape != like.shape:
        return tensor
    moved = tensor.detach().to(like.device)
    return distribute_tensor(moved, like.device_mesh, like.placements, src_data_rank=None).to_local()


@torch.no_grad()
def copy_whole_(target: Tensor, tensor: Tensor) -> None:
    """Overwrites `target`, which may be cut, with a whole tensor of its shape."""
    part(target).copy_(part_of(tensor, like=target))


def _move_what_is_whole(model: PreTrainedModel, device: torch.device) -> None:
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            if not isinstance(parameter, DTensor):
                parameter.data = parameter.data.to(device)
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))
