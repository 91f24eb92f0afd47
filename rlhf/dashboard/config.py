"""Configuration of `rlhf dashboard`."""

from typing import Literal

from pydantic import Field

from policies.config import StrictModel


class DashboardConfig(StrictModel):
    """`rlhf dashboard`: the W&B workspace of a project, written to a file and sent where there is a key."""

    projects: tuple[str, ...] = Field(default=("rlhf",), min_length=1, max_length=1)
    """Name of a W&B project, or a run folder whose project it is; the word after `rlhf dashboard`."""
    entity: str | None = None
    """W&B user or team that owns the project; null takes the key's own."""
    send: Literal["auto", "on", "off"] = "auto"
    """`auto` sends the views when WANDB_API_KEY is in the environment."""
    output: str = "dashboard.json"
    """The file. Views that it says were sent before are replaced, not doubled; keep it with the project."""
