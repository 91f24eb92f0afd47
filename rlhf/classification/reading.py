"""How classifiers read a prompt, and how the policy under them is saved.

The state that predicts the next token is what both words and heads are read from; `policies.sequences` gives it for a
response of one token, whichever it is.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from policies.backbone import Backbone
from policies.causal import CausalPolicy
from policies.checkpoint import save_model
from policies.sequences import SequenceBatch, TokenIds, pad_sequences


def next_token_batch(prompts: Sequence[TokenIds], backbone: Backbone) -> SequenceBatch:
    """Prompts as a right-padded batch whose first response token is the one to predict."""
    anything = np.array([backbone.pad_id], dtype=np.int32)
    return pad_sequences(prompts, [anything] * len(prompts), pad_id=backbone.pad_id, device=backbone.device)


def save_policy(policy: CausalPolicy, folder: Path, metadata: Mapping[str, object]) -> None:
    """Writes the adapter where there is one, else the whole model."""
    backbone = policy.backbone
    if policy.adapter is None:
        save_model(folder, backbone.model, backbone.tokenizer, metadata)
    else:
        backbone.adapters.save(policy.adapter, folder, tokenizer=backbone.tokenizer, metadata=metadata)
