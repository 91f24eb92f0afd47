"""Which precision matrix products run in while weights, moments and sums stay in float32 (Micikevicius et al. 2018).

Owns the choice and the autocast context. Only stages that need no exact log-probabilities use it: pretraining.
"""

from typing import Literal

import torch

ComputeDtype = Literal["auto", "float32", "bfloat16"]


def resolve_compute_dtype(choice: ComputeDtype, device: torch.device) -> torch.dtype:
    """What `choice` means on `device`; "auto" is bfloat16 where the hardware multiplies it natively, else float32."""
    if choice == "auto":
        return torch.bfloat16 if _multiplies_bfloat16(device) else torch.float32
    return torch.bfloat16 if choice == "bfloat16" else torch.float32


def reduced_precision(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """A context in which matrix products run in `dtype`; without effect for float32."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16)


def _multiplies_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # Emulated bfloat16 is slower than float32, so a CPU must say that it has the instructions.
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return device.type == "cpu" and any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16"))
