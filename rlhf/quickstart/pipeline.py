"""`rlhf quickstart`: the whole road on the embedded world, with a progress display and a table at the end.

Owns the order of the stages, their timing and what is done on a second start. Each stage is the same function that
`rlhf <stage>` runs; its numbers are in `recipe`, the final measurements in `outcome`, the page in `page`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from rlhf.config import QuickstartConfig
from rlhf.quickstart import recipe
from rlhf.quickstart.comparisons import write_comparisons, write_rows
from rlhf.quickstart.outcome import Outcomes, measure_outcomes, summary_of
from rlhf.quickstart.page import COLUMNS, TITLES, outcome_rows, quickstart_page
from rlhf.quickstart.recipe import Layout
from rlhf.quickstart.world import demonstration_rows, pretrain_rows, prompt_rows
from rlhf.reports.page import write_report
from rlhf.runtime.cluster import ray_cluster
from rlhf.runtime.run_folder import RunFiles, open_run
from rlhf.stage_chain import StageChain
from rlhf.stage_progress import StageProgress
from rlhf.trainers import ppo, pretrain, reward, sft

DEFAULT_FOLDER = Path("runs/quickstart")
HELD_OUT_ROWS = 200
_STAGES = {
    "data": "write the world's data",
    "pretrain": "pretrain on stories",
    "sft": "fine-tune on demonstrations (SFT)",
    "rankings": "sample answers, have them ranked",
    "reward": "train the reward model",
    "ppo": "PPO",
    "ppo_ptx": "PPO-ptx",
    "eval": "compare on held-out questions",
}
"""What each stage is called, in the order they run."""


def run(config: QuickstartConfig, *, resume: bool) -> None:
    """Runs the chain; `resume` continues the newest default folder, or `run_dir`, with the stage that was interrupted.

    Raises:
        ValueError: `run_dir` holds a run already and `resume` is off, or there is nothing to resume.
    """
    root = Path(config.run_dir) if config.run_dir is not None else default_folder(resume=resume)
    console = Console(highlight=False)
    with open_run(root, config.model_copy(update={"run_dir": str(root)}), resume=resume) as folder:
        console.print(f"rlhf quickstart in {root}")
        outcomes, summary = Chain(config, Layout(root)).run()
        folder.write_summary(summary)
        page = write_report(root, quickstart_page(Layout(root), outcomes, summary))
    show(console, outcomes, page)


def default_folder(*, resume: bool) -> Path:
    """The newest of runs/quickstart, runs/quickstart-2, ... to resume, or the first that holds no run."""
    newest, number = None, 1
    while True:
        candidate = DEFAULT_FOLDER if number == 1 else DEFAULT_FOLDER.with_name(f"{DEFAULT_FOLDER.name}-{number}")
        if not RunFiles(candidate).holds_run():
            return newest if resume and newest is not None else candidate
        newest, number = candidate, number + 1


class Chain:
    """The stages in order; one that has ended is not run again."""

    def __init__(self, config: QuickstartConfig, layout: Layout) -> None:
        self._config, self._layout = config, layout

    def run(self) -> tuple[Outcomes, dict[str, Any]]:
        """Runs what has not run yet; returns the outcomes and the summary."""
        config, layout = self._config, self._layout
        with StageProgress(_STAGES) as progress:
            chain = StageChain(layout.root, progress)
            chain.do("data", self._write_data)
            with one_thread():
                chain.train("pretrain", pretrain.run, recipe.pretrain_config(config, layout))
                chain.train("sft", sft.run, recipe.sft_config(config, layout))
            chain.do("rankings", self._write_rankings)
            chain.train("reward", reward.run, recipe.reward_config(config, layout))
            # One cluster for both runs: starting Ray costs seconds.
            with ray_cluster(None):
                for name in ("ppo", "ppo_ptx"):
                    stage = recipe.ppo_config(config, layout, name, mix_pretraining=name == "ppo_ptx")
                    chain.train(name, ppo.run, stage)
            outcomes: list[Outcomes] = []
            # Measured again on every start: the table needs the answers, and they are not kept.
            chain.repeat("eval", lambda: outcomes.append(self._measure()))
        return outcomes[0], summary_of(outcomes[0], chain.seconds)

    def _write_data(self) -> None:
        seed, layout = self._config.seed, self._layout
        write_rows(layout.data("stories"), pretrain_rows(self._config.stories, seed))
        write_rows(layout.data("stories-eval"), pretrain_rows(2 * HELD_OUT_ROWS, seed, split="eval"))
        write_rows(layout.data("demonstrations"), demonstration_rows(self._config.demonstrations, seed))
        write_rows(layout.data("demonstrations-eval"), demonstration_rows(HELD_OUT_ROWS, seed, split="eval"))
        write_rows(layout.data("prompts"), prompt_rows(2000, seed))
        write_rows(layout.data("prompts-eval"), prompt_rows(HELD_OUT_ROWS, seed, split="eval"))

    def _write_rankings(self) -> None:
        config = self._config
        write_comparisons(self._layout, comparisons=config.comparisons, held_out=HELD_OUT_ROWS, seed=config.seed)

    def _measure(self) -> Outcomes:
        return measure_outcomes(self._layout, prompts=self._config.eval_prompts, seed=self._config.seed)


@contextmanager
def one_thread() -> Iterator[None]:
    """Steps of a few hundred tokens are too small to share: 58 ms on one thread, 91 ms on two (bfloat16, 2 cores)."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def show(console: Console, outcomes: Outcomes, page: Path) -> None:
    """Prints the table, three answers before and after, and where the report lies."""
    table = Table(*COLUMNS, title="Held-out questions, before and after", title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    for row in outcome_rows(outcomes):
        table.add_row(*(f"{cell:.2f}" if isinstance(cell, float) else str(cell) for cell in row))
    console.print()
    console.print(table)
    before, after = outcomes.policies[0], outcomes.policies[-1]
    for index in outcomes.shown:
        console.print(f"\n{outcomes.prompts[index]}", markup=False, style="dim")
        for policy in (before, after):
            console.print(
                f"  {TITLES[policy.name]:<8} gold {policy.gold[index]:+.2f} {policy.answers[index].rstrip()}",
                markup=False,
            )
    console.print(f"\nreport: {page}")
