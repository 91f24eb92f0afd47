"""Configuration of what surrounds a run: tracking, checkpoints, placement on devices."""

from importlib.util import find_spec
from typing import Annotated, Literal, TypeVar

from pydantic import Field, ValidationInfo, field_validator, model_validator

from policies.config import StrictModel
from rlhf.runtime.metric_registry import require_documented


class TrackingConfig(StrictModel):
    """Who shows a run beside its own folder, whose metrics.jsonl is always written."""

    wandb: Literal["auto", "online", "offline", "off"] = "auto"
    """`auto` is online when WANDB_API_KEY is in the environment, else offline."""
    project: str = "rlhf"
    """Project that receives the runs."""
    name: str | None = None
    """Display name of the run; null takes the name of the run folder."""
    tags: tuple[str, ...] = ()
    """Labels of the run."""
    tensorboard: bool = False
    """Also write event files into `<run_dir>/tensorboard`; needs the extra `tensorboard`."""
    mlflow: bool = False
    """Also log to MLFLOW_TRACKING_URI, or to `<run_dir>/mlruns` where it is not set; needs the extra `mlflow`."""
    live: Literal["auto", "off"] = "auto"
    """`auto` is a view that stays in place on a terminal, one line a step elsewhere; `off` is lines everywhere."""

    @field_validator("tensorboard", "mlflow")
    @classmethod
    def _require_library(cls, wanted: bool, info: ValidationInfo) -> bool:  # noqa: FBT001 - pydantic calls it so
        # Here, so that nothing heavy loads before a library turns out to be missing.
        if wanted and find_spec(str(info.field_name)) is None:
            raise ValueError(
                f"the library {info.field_name} is not installed; "
                f"install it with: pip install 'rlhf[{info.field_name}]', or leave this false"
            )
        return wanted


class BestCheckpoint(StrictModel):
    """Which step is the best."""

    metric: str
    """Metric that decides, as metrics.jsonl names it, such as `eval/score` or `eval/perplexity`; steps without it are
    passed over."""
    direction: Literal["higher", "lower"]
    """Which values are better."""

    @field_validator("metric")
    @classmethod
    def _is_documented(cls, metric: str) -> str:
        require_documented([metric])
        return metric


class CheckpointConfig(StrictModel):
    """When the whole training state is saved."""

    every_steps: int = Field(default=50, ge=1)
    """Steps between checkpoints; the last step is always saved."""
    keep_last: int = Field(default=2, ge=1)
    """How many checkpoints stay."""
    keep_best: BestCheckpoint | None = None
    """Keeps the checkpoint of the best step, too, and its model as `run_dir/best` (a reward model's is chosen by
    `weights`); null keeps the last ones only. A step that is the best so far is saved whether or not it is due."""


class ActorResources(StrictModel):
    """What one actor asks of the cluster."""

    cpus: float = Field(default=0.25, ge=0)
    """CPUs of each actor, reserved in the cluster; torch gets as many threads, at least one."""
    gpus: float = Field(default=0.0, ge=0)
    """GPUs of each actor; fractions share a device."""


class RoleResources(ActorResources):
    """What the actors of a role ask of the cluster."""

    workers: int = Field(default=1, ge=1)
    """Actors of this role."""


_Ranks = TypeVar("_Ranks", bound=RoleResources)


class RanksConfig(RoleResources):
    """Processes that train one model together, each on its share of every step: the numbers are those of one."""

    workers: int = Field(default=1, ge=1)
    """Ranks. 1 trains in the process of the command; more are Ray actors, with the run folder on storage they share."""
    cpus: float = Field(default=1.0, ge=0)
    """CPUs of each rank, with more than one; torch gets as many threads, at least one."""
    timeout_seconds: float = Field(default=1800.0, gt=0)
    """Longest wait of one rank for another before it is declared lost."""
    address: str | None = None
    """Address of a running Ray cluster; null starts a local one."""

    @model_validator(mode="after")
    def _whole_gpus(self) -> "RanksConfig":
        return _without_shared_gpus(self)


class LearnerResources(RoleResources):
    """What the ranks that update policy and critic ask of the cluster.

    Each rank computes its share of every minibatch, and all take the same step: the numbers are those of one rank, up
    to the order of sums.
    """

    sharding: Literal["none", "full"] = "none"
    """`full` cuts the decoder layers, with their gradients and optimizer state, over the ranks (FSDP2), for models
    beyond one device; `none` holds all of them on every rank."""

    @model_validator(mode="after")
    def _ranks_can_meet(self) -> "LearnerResources":
        if self.sharding == "full" and self.workers == 1:
            raise ValueError("sharding=full cuts layers over ranks, and workers=1 is one: set workers=2 or more")
        return _without_shared_gpus(self)


def _without_shared_gpus(ranks: _Ranks) -> _Ranks:
    if ranks.workers > 1 and ranks.gpus % 1:
        raise ValueError(
            f"gpus={ranks.gpus:g} with workers={ranks.workers}: ranks cannot share a GPU (NCCL refuses it); give each "
            "a whole one, or gpus=0"
        )
    return ranks


class ColocatedPlacement(StrictModel):
    """One actor hosts all roles on one base model. The default on one device."""

    kind: Literal["colocated"] = "colocated"
    """Tag of this variant."""
    cpus: float | None = Field(default=None, gt=0)
    """CPUs of the actor, also its torch threads; null takes all that the cluster's node has."""
    gpus: float | None = Field(default=None, ge=0)
    """GPUs of the actor; null takes one where there is one."""
    timeout_seconds: float = Field(default=1800.0, gt=0)
    """Longest wait for one call before the actor is declared hung."""
    address: str | None = None
    """Address of a running Ray cluster; null starts a local one."""


class SplitPlacement(StrictModel):
    """Each role has its own actors."""

    kind: Literal["split"] = "split"
    """Tag of this variant."""
    rollout: RoleResources = RoleResources()
    """Actors that generate."""
    reward: RoleResources = RoleResources()
    """Actors that score."""
    reference: RoleResources = RoleResources()
    """Actors that hold the reference policy."""
    learner: LearnerResources = LearnerResources()
    """Actors that update policy and critic together, one rank each."""
    weight_transport: Literal["auto", "object_store", "collective"] = "auto"
    """How new weights reach the rollout workers. `object_store`: each bucket once in Ray's store, for all workers to
    read. `collective`: a broadcast from the learner to all of them, gloo between CPUs, NCCL between whole GPUs (which
    has not been tried); where it breaks, because a worker dies or hangs, that update takes the object store. `auto` is
    `collective` where all weights train, learner and rollout have whole GPUs and workers do not run ahead; else
    `object_store`, which is as fast between CPUs."""
    timeout_seconds: float = Field(default=1800.0, gt=0)
    """Longest wait for one call before the actor is declared hung."""
    address: str | None = None
    """Address of a running Ray cluster; null starts a local one."""


class InProcessPlacement(StrictModel):
    """The colocated roles in the driver's own process, without Ray: for debugging and for machines without Ray."""

    kind: Literal["in_process"] = "in_process"
    """Tag of this variant."""


Placement = Annotated[ColocatedPlacement | SplitPlacement | InProcessPlacement, Field(discriminator="kind")]
