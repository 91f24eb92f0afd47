"""`rlhf plan` and what `--dry-run` says of a training run: who would live where, in how much memory.

Starts nothing and loads nothing. Owns the wording and the table. Memory is added up in
`memory_plan` and `training_memory`.
"""

from collections.abc import Iterator, Sequence
from itertools import groupby

from rich.console import Console
from rich.table import Table

from rlhf.config import DpoConfig, PpoConfig
from rlhf.planning.memory_plan import LIBRARIES, MIB, ActorMemory, Device, Terms, actor_memory, models_of, state_bytes
from rlhf.planning.training_memory import TrainingConfig, training_memory
from rlhf.runtime.config import InProcessPlacement
from rlhf.runtime.placement import ALL_ROLES, local_resources, refuse_impossible, seats_of

_ASSUMPTION = "with every prompt and response at its longest"
_EVERY_ROW = "with every row at its longest"


def run(config: PpoConfig, *, resume: bool) -> None:
    """Prints the placement and a table of memory, one column for each kind of actor.

    Raises:
        ValueError: this machine can never hold the placement, or a model does not say its sizes.
    """
    assert not resume, "the command line offers --resume to resumable stages only"
    console = Console(highlight=False, soft_wrap=True)
    for line in describe_placement(config):
        console.print(line, markup=False)
    console.print(memory_table(plan_memory(config)))


def describe(config: PpoConfig) -> list[str]:
    """Placement and memory as lines; where a model is not there yet, the reason stands in the place of its memory.

    Raises:
        ValueError: this machine can never hold the placement.
    """
    lines = describe_placement(config)
    try:
        return lines + describe_memory(plan_memory(config))
    except ValueError as error:
        # A dry run checks a configuration, whose models another stage may still have to write.
        return [*lines, f"memory: not known: {error}"]


def describe_training(config: TrainingConfig) -> list[str]:
    """The memory of a stage that trains one model, as lines; where the model is not there yet, the reason."""
    ranks = 1 if isinstance(config, DpoConfig) else config.ranks.workers
    lines = [f"ranks: {ranks} actors train together"] if ranks > 1 else []
    device: Device = "cuda" if local_resources().gpus and config.model.device != "cpu" else "cpu"
    try:
        return lines + describe_memory([training_memory(config, device)], _EVERY_ROW)
    except ValueError as error:
        return [*lines, f"memory: not known: {error}"]


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


def plan_memory(config: PpoConfig) -> list[ActorMemory]:
    """The memory of every process of a run, the driver first; of actors with the same roles, the first.

    Raises:
        ValueError: a model cannot be found, or does not say its sizes.
    """
    models, offered = models_of(config), local_resources()
    if isinstance(config.placement, InProcessPlacement):
        return [actor_memory("driver", ALL_ROLES, _device_of(config, offered.gpus), config, models)]
    # Ray carries a checkpoint from the learner to the driver through the object store.
    host = {"libraries": LIBRARIES, "checkpoint in the object store": state_bytes(config, models)}
    actors = [ActorMemory("driver", (), "cpu", {}, {}, host)]
    seats = list(seats_of(config.placement, offered).items())
    for roles, group in groupby(seats, key=lambda item: item[1].roles):
        (name, seat), *others = group
        title = f"{name} and {len(others)} more, each" if others else name
        actors.append(actor_memory(title, roles, _device_of(config, seat.resources.gpus), config, models))
    return actors


def describe_memory(actors: Sequence[ActorMemory], assumption: str = _ASSUMPTION) -> list[str]:
    """Three lines an actor: its peak, what it is made of, and what lies in main memory beside it."""
    lines = [f"memory: an estimate, {assumption}"]
    for actor in actors:
        if actor.resident:
            lines.append(f"  {actor.name} on {actor.device}: {_size(actor.peak)} at most, while in {actor.peak_phase}")
            lines.append(f"    always: {_terms(actor.resident)}")
            lines += [f"    {phase} adds: {_terms(terms)}" for phase, terms in actor.phases.items()]
        lines.append(f"  {actor.name}, main memory beside that: {_terms(actor.host)}")
    return lines


def memory_table(actors: Sequence[ActorMemory]) -> Table:
    """A column an actor; what is always there first, then what each phase adds, then the sums."""
    table = Table("", *(f"{actor.name}\n{actor.device}" for actor in actors), title=f"Memory, MiB, {_ASSUMPTION}")
    for column in table.columns[1:]:
        column.justify = "right"
    for section, terms_of in _sections(actors):
        names = list(dict.fromkeys(name for terms in terms_of for name in terms))
        for name in names:
            table.add_row(f"{section}: {name}", *(_cell(terms.get(name, 0)) for terms in terms_of))
        table.add_section()
    table.add_row("most at the same time", *(_cell(actor.peak) for actor in actors), style="bold")
    table.add_row("in the phase", *(actor.peak_phase or "-" for actor in actors))
    return table


def _sections(actors: Sequence[ActorMemory]) -> Iterator[tuple[str, list[Terms]]]:
    yield "always", [actor.resident for actor in actors]
    for phase in dict.fromkeys(phase for actor in actors for phase in actor.phases):
        yield phase, [actor.phases.get(phase, {}) for actor in actors]
    yield "main memory", [actor.host for actor in actors]


def _device_of(config: PpoConfig, gpus: float) -> Device:
    return "cuda" if gpus and config.model.device != "cpu" else "cpu"


def _terms(terms: Terms) -> str:
    return ", ".join(f"{name} {_size(size)}" for name, size in terms.items() if size) or "nothing"


def _size(size_bytes: int) -> str:
    return f"{size_bytes / MIB:,.0f} MiB" if size_bytes < 10 * 1024 * MIB else f"{size_bytes / 1024 / MIB:,.1f} GiB"


def _cell(size_bytes: int) -> str:
    return f"{size_bytes / MIB:,.1f}" if size_bytes else "-"
