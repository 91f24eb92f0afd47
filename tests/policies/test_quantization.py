"""Bases in 8 and 4 bits: what a layer computes, that adapters alone train on it, and which base an adapter has."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from policies import quantization
from policies.backbone import Backbone
from policies.causal import CausalPolicy
from policies.config import LoraTuning, ModelConfig
from policies.loading import load_backbone
from policies.quantization import QuantizedLinear
from policies.reference import ReferencePolicy
from tests.tiny_models import RAGGED, build_model, ragged_batch, randomize

FORMATS = ["int8", "nf4"]
LARGEST_ERROR = {"int8": 0.01, "nf4": 0.12}
"""Relative, in the 2-norm, of a normal weight: half a step of 127, or of about 8."""


def backbone_in(format: str, folder: Path, **options: Any) -> Backbone:
    return load_backbone(ModelConfig(path=str(folder), quantization=format, device="cpu", **options))  # pyright: ignore[reportArgumentType]


@pytest.mark.usefixtures("bitsandbytes")
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("shape", [(48, 32), (5, 33), (64, 128)], ids=str)
def test_a_layer_multiplies_with_a_weight_near_the_original_and_passes_gradients_to_its_input_alone(
    format: Any, shape: tuple[int, int]
) -> None:
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(shape, generator=generator), torch.randn(shape[0], generator=generator)
    layer = QuantizedLinear(weight, bias, format)
    near = layer.dequantized(torch.float32)
    assert float((near - weight).norm() / weight.norm()) < LARGEST_ERROR[format]
    assert not torch.equal(near, weight)
    x = torch.randn(3, 2, shape[1], generator=generator, requires_grad=True)
    torch.testing.assert_close(layer(x), x @ near.T + bias)
    torch.testing.assert_close(layer.plain(torch.float32)(x), layer(x))
    layer(x).square().sum().backward()
    (expected,) = torch.autograd.grad((x @ near.T + bias).square().sum(), x)
    torch.testing.assert_close(x.grad, expected)
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in layer.parameters())
    assert layer(x.to(torch.bfloat16)).dtype == torch.bfloat16


@pytest.mark.usefixtures("bitsandbytes")
def test_weights_of_zero_stay_zero() -> None:
    for format in FORMATS:
        assert not QuantizedLinear(torch.zeros(8, 70), None, format).dequantized(torch.float32).any()  # pyright: ignore[reportArgumentType]


@pytest.mark.usefixtures("bitsandbytes")
@pytest.mark.parametrize("format", FORMATS)
def test_log_probs_are_near_those_of_the_plain_base_and_do_not_depend_on_the_batch(
    format: str, tiny_llama_folder: Path
) -> None:
    plain, quantized = backbone_in("none", tiny_llama_folder), backbone_in(format, tiny_llama_folder)
    assert (plain.is_quantized, quantized.is_quantized) == (False, True)
    assert type(quantized.model.get_output_embeddings()) is torch.nn.Linear
    logprobs = [
        CausalPolicy(backbone, adapter=None, temperature=1.0).logprobs(ragged_batch()).logprobs
        for backbone in (plain, quantized)
    ]
    gap = float((logprobs[0] - logprobs[1]).abs().max())
    assert 1e-4 < gap < (0.5 if format == "int8" else 4.0)
    for index in range(3):
        alone = CausalPolicy(quantized, adapter=None, temperature=1.0).logprobs(ragged_batch((index,))).logprobs[0]
        torch.testing.assert_close(logprobs[1][index, : len(alone)], alone, atol=1e-5, rtol=0)


@pytest.mark.usefixtures("bitsandbytes")
def test_the_transposed_layers_of_gpt2_are_quantized_too(tmp_path: Path, tiny_tokenizer: Any) -> None:
    model = build_model("gpt2", len(tiny_tokenizer))
    model.save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    plain, quantized = backbone_in("none", tmp_path), backbone_in("int8", tmp_path)
    assert sum(isinstance(layer, QuantizedLinear) for layer in quantized.model.modules()) == 2 * 4
    first, second = (b.model(input_ids=torch.arange(6)[None]).logits for b in (plain, quantized))
    assert float((first - second).norm() / first.norm()) < 0.05


@pytest.mark.usefixtures("bitsandbytes")
@pytest.mark.parametrize("format", FORMATS)
def test_an_adapter_trains_alone_and_the_reference_is_the_quantized_base(format: str, tiny_llama_folder: Path) -> None:
    backbone = backbone_in(format, tiny_llama_folder)
    backbone.adapters.add("policy", LoraTuning(rank=2), seed=0)
    reference = ReferencePolicy.at_start(backbone, LoraTuning(rank=2), temperature=1.0)
    rows = [np.array(prompt, np.int32) for prompt, _ in RAGGED], [np.array(r, np.int32) for _, r in RAGGED]
    before = reference.logprobs(*rows, 64)
    policy = CausalPolicy(backbone, adapter="policy", temperature=1.0)
    own = {id(parameter) for _, parameter in policy.trainable()}
    randomize(backbone.adapters, "policy", seed=1)
    policy.logprobs(ragged_batch()).logprobs.sum().backward()
    assert all((parameter.grad is not None) == (id(parameter) in own) for parameter in backbone.model.parameters())
    assert all(np.array_equal(a, b) for a, b in zip(reference.logprobs(*rows, 64), before, strict=True))


@pytest.mark.usefixtures("bitsandbytes")
def test_an_adapter_is_of_the_format_it_was_trained_on(tiny_llama_folder: Path, tmp_path: Path) -> None:
    source = backbone_in("nf4", tiny_llama_folder)
    source.adapters.add("policy", LoraTuning(rank=2), seed=0)
    randomize(source.adapters, "policy", seed=1)
    source.adapters.save("policy", tmp_path / "adapter", tokenizer=source.tokenizer)
    assert backbone_in("nf4", tmp_path / "adapter").fingerprint == source.fingerprint
    for other in ("none", "int8"):
        with pytest.raises(
            ValueError, match=f"model.quantization=nf4, but .* is loaded with {other}: set model.quanti"
        ):
            backbone_in(other, tmp_path / "adapter")


def test_without_the_library_a_quantized_base_is_refused_in_one_line(
    tiny_llama_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantization, "find_spec", lambda _: None)
    with pytest.raises(ValueError, match=r"^model\.quantization=nf4: bitsandbytes is not installed; `pip install rlhf"):
        backbone_in("nf4", tiny_llama_folder)
