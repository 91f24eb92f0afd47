"""`rlhf forgetting`: tasks are learned one after the other, in several ways, and all are asked after each.

Owns the order, what each fine-tuning begins with, and which data count as old. Every fine-tuning is `rlhf sft` with a
run folder of its own, `<run_dir>/<way>/seed-<seed>/<number>-<task>`; what has finished stays when the comparison is
resumed, or gets another way or seed.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from policies.config import ModelConfig
from rlhf.config import ForgettingConfig, SftConfig
from rlhf.config.forgetting import ComparedWay
from rlhf.data import load_rows
from rlhf.evaluation.models import LoadedModel
from rlhf.evaluation.task_scores import measure_tasks
from rlhf.evaluation.tasks import Task, read_task
from rlhf.forgetting.matrices import Known, WayRow, summary_of, way_row
from rlhf.forgetting.page import forgetting_page, print_table
from rlhf.reports.page import write_report
from rlhf.runtime import json_lines
from rlhf.runtime.run_folder import RunFiles, open_run
from rlhf.runtime.saved_config import let_grow, refuse_changed_config
from rlhf.stage_chain import StageChain
from rlhf.stage_progress import StageProgress
from rlhf.text_stream import require_texts
from rlhf.trainers import sft

KNOWN_FILE = "known.json"
"""In the folder of each fine-tuning, and of the comparison for the start."""
_MAY_GROW = ("ways", "seeds")


def run(config: ForgettingConfig, *, resume: bool) -> None:
    """Learns what is missing, and leaves the matrices in summary.json and report.html.

    Raises:
        ValueError: what the user can fix.
    """
    sequence = TaskSequence(config)
    if resume:
        let_grow(RunFiles(config.run_dir).config_path, config.model_dump(mode="json"), _MAY_GROW)
    with open_run(config.run_dir, config, resume=resume) as folder:
        rows, start, seconds = sequence.run()
        summary = summary_of(sequence.names, start, rows, config.seeds, seconds)
        folder.write_summary(summary)
        page = write_report(folder.path, forgetting_page(folder.path))
    print_table(summary, page)


class TaskSequence:
    """All ways and seeds of one folder; what is done is not done again.

    Raises:
        ValueError: questions or text cannot be read.
    """

    def __init__(self, config: ForgettingConfig) -> None:
        self._config, self._root = config, Path(config.run_dir)
        self.names = [task.name for task in config.tasks]
        self._tasks = [self._questions(place) for place in range(len(config.tasks))]
        self._text = self._pretrain("pretrain_eval")

    def run(self) -> tuple[list[WayRow], Known, float]:
        """One row for each way, what the start knows, and the seconds of all that was done."""
        config = self._config
        with StageProgress(self._titles()) as progress:
            chain = StageChain(self._root, progress)
            chain.do("start", lambda: self._ask(config.sft.model.path, self._root, self._tasks))
            start = _read(self._root)
            rows = [self._way(chain, way, start) for way in config.ways]
        return rows, start, sum(chain.seconds.values())

    def _way(self, chain: StageChain, way: ComparedWay, start: Known) -> WayRow:
        seeds = [self._learn(chain, way, seed, start) for seed in self._config.seeds]
        names = [self._name(way, task, seed) for seed in self._config.seeds for task in range(len(self.names))]
        seconds = sum(chain.seconds[name] for name in names) / len(seeds)
        return way_row(way.name, start, seeds, self.names, seconds=seconds)

    def _learn(self, chain: StageChain, way: ComparedWay, seed: int, start: Known) -> list[Known]:
        """What is known after each task of the sequence."""
        is_isolated = way.adapters == "per_task"
        model = self._config.sft.model.path
        known: list[Known] = []
        for task in range(len(self.names)):
            asked = [self._tasks[task]] if is_isolated else self._tasks
            stage = self._config.sft_stage(way, task, seed=seed, start=model, old=self._old_rows(task))
            found = self._learn_one(chain, stage, asked)
            known.append(_beside(known[-1] if known else start, found, start) if is_isolated else found)
            model = model if is_isolated else _model_of(stage)
        return known

    def _learn_one(self, chain: StageChain, stage: SftConfig, asked: Sequence[Task]) -> Known:
        files = RunFiles(stage.run_dir)
        name = files.path.relative_to(self._root).as_posix()
        if files.read_summary():
            refuse_changed_config(files.config_path, stage.model_dump(mode="json"), type(stage))
        chain.train(name, sft.run, stage)
        chain.do(f"{name}/ask", lambda: self._ask(_model_of(stage), files.path, asked))
        return _read(files.path)

    def _ask(self, model: str, folder: Path, tasks: Sequence[Task]) -> None:
        """Writes what a model knows of the tasks, and of the text."""
        config = self._config
        settings = config.sft.model.model_dump() | {"path": model}
        loaded = LoadedModel(ModelConfig.model_validate(settings))
        outcomes = measure_tasks(loaded, tasks, config.questions, seed=config.seed)
        scores = {
            outcome.task: float(outcome.correct["exact" if "exact" in outcome.correct else config.measure].mean())
            for outcome in outcomes
        }
        known = Known(scores, loaded.perplexity(self._text))
        json_lines.write_atomically(folder / KNOWN_FILE, json_lines.encode(asdict(known), indent=2) + "\n")

    def _old_rows(self, task: int) -> str | None:
        """A file with the rows that were learned before a task; None where there are none."""
        if task == 0:
            return self._config.data.pretrain
        path = self._root / f"before-{task + 1}-{self.names[task]}.jsonl"
        if not path.exists():
            texts: list[dict[str, object]] = [{"text": text} for text in self._pretrain("pretrain")]
            earlier = [row for one in self._config.tasks[:task] for row in load_rows(one.train, field="tasks.train")]
            json_lines.write_objects(path, [*texts, *earlier])
        return str(path)

    def _questions(self, place: int) -> Task:
        task = self._config.tasks[place]
        field = f"tasks.{place}.eval"
        rows = load_rows(task.eval, field=field)
        found = read_task(rows, source=task.eval, field=field, on_bad_row=self._config.data.on_bad_row)
        return Task(task.name, found.kind, found.rows, found.skipped)

    def _pretrain(self, key: str) -> list[str]:
        source = getattr(self._config.data, key)
        if source is None:
            return []
        rows = load_rows(source, field=f"data.{key}")
        return require_texts(rows, source=f"data.{key}={source}", on_bad_row=self._config.data.on_bad_row)[0]

    def _name(self, way: ComparedWay, task: int, seed: int) -> str:
        return self._config.folder(way, task, seed=seed).relative_to(self._root).as_posix()

    def _titles(self) -> dict[str, str]:
        titles = {"start": "ask the start"}
        for way in self._config.ways:
            for seed in self._config.seeds:
                for task in range(len(self.names)):
                    name = self._name(way, task, seed)
                    titles |= {name: name, f"{name}/ask": "  ask all tasks"}
        return titles


def _beside(before: Known, found: Known, start: Known) -> Known:
    """With an adapter for each task, the others stay as they are, and text is read without any."""
    return Known({**before.scores, **found.scores}, start.perplexity)


def _model_of(stage: SftConfig) -> str:
    return str(RunFiles(stage.run_dir).path / "model")


def _read(folder: Path) -> Known:
    found: Mapping[str, object] = json.loads((folder / KNOWN_FILE).read_text(encoding="utf-8"))
    return Known(**found)  # pyright: ignore[reportArgumentType] - as `_ask` wrote it
