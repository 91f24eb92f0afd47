"""What `--dry-run` says about a PPO run beyond its configuration: who would live where. Starts nothing."""

from rlhf.config import PpoConfig
from rlhf.runtime.config import InProcessPlacement
from rlhf.runtime.placement import ALL_ROLES, local_resources, refuse_impossible, seats_of


def describe_placement(config: PpoConfig) -> list[str]:
    """One line an actor: its name, its roles, what it reserves.

    Raises:
        ValueError: this machine can never hold the placement (unchecked for a cluster elsewhere).
    """
    placement = config.placement
    samples = config.rollout.prompts_per_step * config.rollout.responses_per_prompt
    step = f"each step: {samples} responses, then {config.algorithm.epochs} epochs over them"
    if config.rollout.max_policy_age:
        step += f"; rollouts run ahead, max_policy_age={config.rollout.max_policy_age}"
    if isinstance(placement, InProcessPlacement):
        return [f"placement: this process hosts {', '.join(ALL_ROLES)}", step]
    offered = local_resources()
    seats = seats_of(placement, offered)
    where = "a local Ray cluster" if placement.address is None else f"the Ray cluster at {placement.address}"
    if placement.address is None:
        refuse_impossible([seat.resources for seat in seats.values()], offered)
    return [
        f"placement: {placement.kind} on {where}",
        *(f"  actor {name}: {seat}" for name, seat in seats.items()),
        step,
    ]
