"""Configuration of what surrounds a run: tracking, checkpoints, placement on devices."""

from importlib.util import find_spec
from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from policies.config import StrictModel


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


class CheckpointConfig(StrictModel):
    """When the whole training state is saved."""

    every_steps: int = Field(default=50, ge=1)
    """Steps between checkpoints; the last step is always saved."""
    keep_last: int = Field(default=2, ge=1)
    """How many checkpoints stay."""


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
    learner: ActorResources = ActorResources()
    """The actor that updates policy and critic."""
    timeout_seconds: float = Field(default=1800.0, gt=0)
    """Longest wait for one call before the actor is declared hung."""
    address: str | None = None
    """Address of a running Ray cluster; null starts a local one."""


class InProcessPlacement(StrictModel):
    """The colocated roles in the driver's own process, without Ray: for debugging and for machines without Ray."""

    kind: Literal["in_process"] = "in_process"
    """Tag of this variant."""


Placement = Annotated[ColocatedPlacement | SplitPlacement | InProcessPlacement, Field(discriminator="kind")]
