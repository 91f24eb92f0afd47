"""`rlhf export`: a plain Hugging Face folder from a model with an adapter.

Owns the order of things: merge in float32, compare logits before and after, write, read back, compare again. A folder
appears only if both comparisons held. The merge itself is `policies.adapters`.
"""

from pathlib import Path
from typing import Any, cast

import torch
from rich.console import Console
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from policies.backbone import Backbone
from policies.checkpoint import atomic_folder, save_model
from policies.loading import load_backbone, policy_adapter
from rlhf.config import ExportConfig

_PROBE_ROWS, _PROBE_TOKENS = 4, 64


class ExportMismatchError(RuntimeError):
    """The exported model does not compute what the original does."""


def run(config: ExportConfig, *, resume: bool) -> None:
    """Writes run_dir, loadable by transformers alone; prints the largest difference of a logit.

    Raises:
        ValueError: if run_dir is not empty, or the model cannot be loaded.
        ExportMismatchError: if a logit differs by more than `tolerance`; nothing is written.
    """
    assert not resume, "the command line offers --resume to resumable stages only"
    target = Path(config.run_dir)
    _require_free(target)
    backbone = load_backbone(config.model)
    difference = export(backbone, policy_adapter(backbone), target, tolerance=config.tolerance)
    Console().print(f"exported {config.model.path} to {target}; largest difference of a logit: {difference:.2g}")


@torch.no_grad()
def export(backbone: Backbone, adapter: str | None, target: Path, *, tolerance: float) -> float:
    """Merges `adapter` into a float32 copy of the base and writes it; returns the largest difference of a logit.

    Args:
        backbone: The original.
        adapter: Its adapter; None exports the model as it is.
        target: Folder to write.
        tolerance: Largest allowed difference, after merging and again after reading the folder back.

    Raises:
        ExportMismatchError: if a logit differs by more; nothing is written.
    """
    probe = _probe(backbone)
    with backbone.adapters.use(adapter):
        expected = backbone.model(input_ids=probe, use_cache=False).logits.float()
    merged = backbone.adapters.merged_model(adapter)
    merge_error = _require_equal(merged, probe, expected, tolerance, "merging")
    metadata = {"stage": "export", "started_from": backbone.model.name_or_path, "largest_logit_difference": merge_error}
    with atomic_folder(target) as aside:
        save_model(aside, merged, backbone.tokenizer, metadata)
        written = cast(PreTrainedModel, AutoModelForCausalLM.from_pretrained(aside, dtype=torch.float32))
        written.to(cast(Any, backbone.device))  # PreTrainedModel.to is typed for another class.
        read_error = _require_equal(written, probe, expected, tolerance, "reading back")
    return max(merge_error, read_error)


def _probe(backbone: Backbone) -> Tensor:
    """Random ids: the same for every export of a model, and unlike text they reach all of the vocabulary."""
    generator = torch.Generator().manual_seed(0)
    shape = (_PROBE_ROWS, min(_PROBE_TOKENS, backbone.context_tokens))
    return torch.randint(len(backbone.tokenizer), shape, generator=generator).to(backbone.device)


def _require_equal(model: PreTrainedModel, probe: Tensor, expected: Tensor, tolerance: float, step: str) -> float:
    received = model(input_ids=probe, use_cache=False).logits.float()
    difference = float((received - expected).abs().max())
    if not difference <= tolerance:  # Written this way round, so that NaN counts as a mismatch.
        raise ExportMismatchError(
            f"after {step}, a logit differs by {difference:.3g}, more than tolerance={tolerance:g}; nothing was "
            "written: set model.dtype=float32 if the original was loaded in bfloat16, or raise tolerance"
        )
    return difference


def _require_free(target: Path) -> None:
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(
            f"run_dir={str(target)!r} exists and is not an empty folder; name another run_dir or remove it"
        )
