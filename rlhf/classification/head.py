"""A classifier made of a policy's trunk and a linear head on the state of a text's last token.

It is what prompt learning is compared with: fine-tuning where the model trains too, head-only where it stays as it was.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import Parameter

from policies.adapters import copy_exactly
from policies.causal import CausalPolicy
from policies.label_head import LabelHead
from policies.tokenization import encode_prompt
from rlhf.classification.label_model import Encoded
from rlhf.classification.reading import next_token_batch, save_policy
from rlhf.classification.texts import LabelledText

HEAD_FILE = "label_head.safetensors"
_HEAD = "label_head."


class HeadModel:
    """Backbone and head.

    Args:
        policy: The model and what of it trains.
        labels: L.
        trains_model: Whether the model trains, too.
        seed: Of the head's weights.
    """

    def __init__(self, policy: CausalPolicy, labels: int, *, trains_model: bool, seed: int) -> None:
        self._policy, self._trains_model = policy, trains_model
        self.head = LabelHead(policy.backbone.hidden_size, labels, seed=seed).to(policy.backbone.device)

    @property
    def views(self) -> int:
        """See `LabelModel`."""
        return 1

    def encode(self, text: LabelledText, view: int) -> Encoded:
        """See `LabelModel`: the text alone."""
        assert view == 0, "a head has one view of a text"
        return (encode_prompt(text.text, self._policy.backbone.tokenizer),)

    def label_logprobs(self, inputs: Sequence[Encoded], view: int) -> Tensor:
        """See `LabelModel`."""
        assert view == 0, "a head has one view of a text"
        batch = next_token_batch([prompt for (prompt,) in inputs], self._policy.backbone)
        with torch.set_grad_enabled(self._trains_model and torch.is_grad_enabled()):
            states = self._policy.states(batch)[:, 0]
        return self.head(states).log_softmax(-1)

    def priors(self, view: int) -> Tensor | None:
        """See `LabelModel`: a head is not calibrated."""
        assert view == 0, "a head has one view of a text"
        return None

    def trainable(self) -> list[tuple[str, Parameter]]:
        """See `LabelModel`. The output layer over the vocabulary has no part in it and stays as it is."""
        backbone = self._policy.backbone
        model = backbone.trainable(self._policy.adapter, body_only=True) if self._trains_model else []
        return [*model, *((_HEAD + name, parameter) for name, parameter in self.head.named_parameters())]

    def weights(self) -> Mapping[str, Tensor]:
        """See `LabelModel`."""
        head = {_HEAD + name: parameter.detach() for name, parameter in self.head.named_parameters()}
        return head | (self._model_weights() if self._trains_model else {})

    def load_weights(self, tensors: Mapping[str, Tensor]) -> None:
        """See `LabelModel`."""
        own = {key.removeprefix(_HEAD): tensor for key, tensor in tensors.items() if key.startswith(_HEAD)}
        with torch.no_grad():
            copy_exactly(dict(self.head.named_parameters()), own, what="label head")
        if self._trains_model:
            rest = {key: tensor for key, tensor in tensors.items() if not key.startswith(_HEAD)}
            self._policy.backbone.load_weights(self._policy.adapter, rest, body_only=True)

    def save(self, folder: Path, metadata: Mapping[str, object]) -> None:
        """See `LabelModel`: the head, and `model` where it was trained."""
        self.head.save(folder / HEAD_FILE)
        if self._trains_model:
            save_policy(self._policy, folder / "model", metadata)

    def describe(self) -> dict[str, object]:
        """See `LabelModel`."""
        return {"prompts": [], "views": 1}

    def _model_weights(self) -> dict[str, Tensor]:
        return self._policy.backbone.weights(self._policy.adapter, body_only=True)
