"""The policy that `rlhf sft` and `rlhf dpo` train: its weights and moments, and where they are kept.

Owns what both stages do alike with checkpoints and model folders; loss, data and loop are theirs.
"""

from collections.abc import Mapping

from policies.backbone import Backbone
from policies.causal import CausalPolicy
from policies.checkpoint import save_model
from rlhf.config import DpoConfig, SftConfig
from rlhf.optimization import build_optimizer
from rlhf.runtime.kept_checkpoints import BEST_MODEL, KeptCheckpoints
from rlhf.runtime.run_folder import RunFolder
from rlhf.runtime.training_state import TrainingState, load_optimizer_tensors, optimizer_tensors, with_owner


class TunedPolicy:
    """A policy with its optimizer, which lives in a run folder.

    Args:
        stage: Name of the stage, for the metadata of its models.
        config: The run's configuration; model, optimizer and checkpoint are read.
        backbone: The model.
        adapter: What of it trains; None is the model itself.
        folder: Where checkpoints and models go; None on ranks that leave that to the first.
        total_steps: Last step of the run.

    Attributes:
        policy: The policy, at temperature 1.
        parameters: What trains, by name.
        optimizer: What moves it.
    """

    def __init__(
        self,
        stage: str,
        config: SftConfig | DpoConfig,
        backbone: Backbone,
        adapter: str | None,
        folder: RunFolder | None,
        total_steps: int,
    ) -> None:
        self._metadata = {"stage": stage, "started_from": config.model.path}
        self._backbone, self._adapter, self._folder = backbone, adapter, folder
        self.policy = CausalPolicy(backbone, adapter=adapter, temperature=1.0)
        self.parameters = self.policy.trainable()
        self.optimizer = build_optimizer(self.parameters, config.optimizer)
        self._checkpoints = KeptCheckpoints(folder, config.checkpoint, total_steps)

    def restore(self, state: TrainingState) -> None:
        """Continues from a checkpoint."""
        self.policy.load_weights(state.tensors_of("policy"))
        load_optimizer_tensors(self.optimizer, self.parameters, state.tensors_of("optimizer"))

    def keep_if_due(self, step: int, metrics: Mapping[str, float], values: Mapping[str, str]) -> None:
        """After the log line of a step: its checkpoint where due, and its model where it is the best so far."""
        self._checkpoints.note(step, metrics)
        if self._checkpoints.is_due(step):
            if self._checkpoints.best_step == step:
                self.save_model(BEST_MODEL)
            self.save(step, values)

    def save(self, step: int, values: Mapping[str, str]) -> None:
        """Saves a checkpoint; `values` is what the stage has to remember beside weights and moments."""
        tensors = {
            **with_owner("policy", self.policy.weights()),
            **with_owner("optimizer", optimizer_tensors(self.optimizer, self.parameters)),
        }
        self._checkpoints.save(TrainingState(step, tensors, dict(values)))

    def save_model(self, folder: str = "model") -> None:
        """Writes run_dir/<folder>: the adapter where one was trained, else the whole model."""
        if self._folder is None:
            return
        target, backbone = self._folder.path / folder, self._backbone
        if self._adapter is None:
            save_model(target, backbone.model, backbone.tokenizer, self._metadata)
        else:
            backbone.adapters.save(self._adapter, target, tokenizer=backbone.tokenizer, metadata=self._metadata)

    def summary(self) -> dict[str, object]:
        """What both stages tell of it in summary.json."""
        return {
            "trained_parameters": sum(parameter.numel() for _, parameter in self.parameters),
            **self._checkpoints.summary(),
        }
