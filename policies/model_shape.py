"""The sizes of a model that is not loaded: from its config.json and from the headers of its safetensors files.

Owns the reading of both, and which tensors are linear layers. A header is a few kilobytes in front of the weights, so a
model of any size answers in milliseconds; of a model on the hub that is not in the cache only the headers travel.
"""

import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from huggingface_hub import get_safetensors_metadata, hf_hub_download, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

from policies.sources import unreachable

Shapes = Mapping[str, tuple[int, ...]]

_EMBEDDINGS = ("embed", "wte", "wpe", "lm_head", "output_layer")
"""What stands in the names of matrices that are looked up, or give the logits: no adapter is hung on them."""
_ADAPTERS = ("lora_", "ia3_", "bottleneck_", "bitfit_", "output_layer_", "mix_and_match_", "prompt_embeddings")
"""What stands in the names of an adapter's tensors, by method."""


@dataclass(frozen=True, slots=True)
class LinearShape:
    """A linear layer: the last part of its module's name, and its two widths, in the order of the file."""

    name: str
    rows: int
    columns: int

    @property
    def elements(self) -> int:
        """Weights."""
        return self.rows * self.columns


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What decides how much memory a decoder needs.

    Attributes:
        parameters: All weights, those that input and output share counted once.
        linears: The linear layers of the body, which adapters may hang on.
        output_parameters: Weights of an output layer of its own; 0 where it shares those of the embedding.
        vocabulary: V.
        hidden: D.
        layers: Decoder layers.
        query_width: Query heads times head size.
        key_value_width: Key-value heads times head size.
        intermediate: Width of the MLP.
        is_gated: The MLP multiplies two branches, as in Llama.
        query_heads: Query heads.
        context_tokens: Longest sequence that it has positions for.
    """

    parameters: int
    linears: tuple[LinearShape, ...]
    output_parameters: int
    vocabulary: int
    hidden: int
    layers: int
    query_width: int
    key_value_width: int
    intermediate: int
    is_gated: bool
    query_heads: int
    context_tokens: int


def model_shape(path: str) -> ModelShape:
    """The shape of a full model, in a folder or on the hub.

    Raises:
        ValueError: there is no config.json, no safetensors file, or the hub does not answer.
    """
    config, shapes = _read_config(path), tensor_shapes(path)
    return shape_of(config, shapes, path=path)


def shape_of(config: Mapping[str, Any], shapes: Shapes, *, path: str = "") -> ModelShape:
    """The shape that a config.json and the tensors beside it describe.

    Args:
        config: Content of config.json; the part about text is read where it has one.
        shapes: Tensor name -> shape.
        path: For the message.

    Raises:
        ValueError: the config names no sizes that are known here.
    """
    text: Mapping[str, Any] = config.get("text_config") or config
    tied = bool(config.get("tie_word_embeddings", text.get("tie_word_embeddings", False)))
    output = {name for name in shapes if name.endswith(("lm_head.weight", "embed_out.weight"))}
    stored = {name: shape for name, shape in shapes.items() if not (tied and name in output)}
    hidden = _first(text, path, "hidden_size", "n_embd", "d_model")
    heads = _first(text, path, "num_attention_heads", "n_head")
    head = text.get("head_dim") or hidden // heads
    return ModelShape(
        parameters=sum(prod(shape) for shape in stored.values()),
        linears=tuple(_linears(stored)),
        output_parameters=sum(prod(shape) for name, shape in stored.items() if name in output),
        vocabulary=_first(text, path, "vocab_size"),
        hidden=hidden,
        layers=_first(text, path, "num_hidden_layers", "n_layer"),
        query_width=heads * head,
        key_value_width=(text.get("num_key_value_heads") or heads) * head,
        intermediate=text.get("intermediate_size") or text.get("n_inner") or 4 * hidden,
        is_gated=any("gate" in name for name in stored),
        query_heads=heads,
        context_tokens=_first(text, path, "max_position_embeddings", "n_positions"),
    )


def tensor_shapes(path: str) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor of a model or adapter, from the headers alone.

    Raises:
        ValueError: there is no safetensors file, or the hub does not answer.
    """
    folder = _local_folder(path)
    if folder is None:
        return _hub_shapes(path)
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ValueError(f"model.path={path!r}: the folder has no safetensors file, so its size cannot be told")
    return {name: shape for file in files for name, shape in _header(file).items()}


def adapter_parameters(path: str) -> int:
    """Weights of a PEFT adapter without the head of a classification adapter.

    Raises:
        ValueError: as `tensor_shapes`.
    """
    return sum(prod(shape) for name, shape in tensor_shapes(path).items() if any(part in name for part in _ADAPTERS))


def _linears(shapes: Shapes) -> Iterator[LinearShape]:
    for name, shape in shapes.items():
        module, _, kind = name.rpartition(".")
        if kind == "weight" and len(shape) == 2 and not any(part in name for part in _EMBEDDINGS):
            yield LinearShape(module.rpartition(".")[2], *shape)


def _header(file: Path) -> dict[str, tuple[int, ...]]:
    with file.open("rb") as opened:
        (length,) = struct.unpack("<Q", opened.read(8))
        header = json.loads(opened.read(length))
    return {name: tuple(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}


def _hub_shapes(path: str) -> dict[str, tuple[int, ...]]:
    try:
        metadata = get_safetensors_metadata(path)
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError) as error:
        raise unreachable(path, error) from error
    return {
        name: tuple(tensor.shape) for file in metadata.files_metadata.values() for name, tensor in file.tensors.items()
    }


def _read_config(path: str) -> dict[str, Any]:
    folder = _local_folder(path)
    try:
        file = Path(hf_hub_download(path, "config.json")) if folder is None else folder / "config.json"
        return json.loads(file.read_text(encoding="utf-8"))
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError, ValueError) as error:
        raise unreachable(path, error) from error


def _local_folder(path: str) -> Path | None:
    """The folder itself, or the one in the hub's cache; None where neither exists."""
    if Path(path).is_dir():
        return Path(path)
    try:
        return Path(snapshot_download(path, local_files_only=True))
    except (LocalEntryNotFoundError, OSError, ValueError):
        return None


def _first(config: Mapping[str, Any], path: str, *names: str) -> int:
    """The first of these keys, which architectures name differently."""
    for name in names:
        if config.get(name) is not None:
            return int(config[name])
    raise ValueError(f"model.path={path!r}: config.json has none of {', '.join(names)}; its memory cannot be told")
