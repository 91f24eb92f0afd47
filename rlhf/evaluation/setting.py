"""What an evaluation is about, read before any model is loaded: prompts, text, tasks, judges that compare.

Owns the checks of data and names. It scores and samples nothing.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from policies.tokenization import load_tokenizer, tokenizer_fingerprint
from reward.composite import component_names
from rlhf.config import EvalConfig
from rlhf.data import load_rows
from rlhf.evaluation.comparing import ComparingJudge, FunctionVerdicts
from rlhf.evaluation.config import EndpointJudge, Judge
from rlhf.evaluation.endpoint_judge import REPLIES_FILE, EndpointVerdicts, ReplyStore
from rlhf.evaluation.harness import require_harness
from rlhf.evaluation.tasks import Task, read_task
from rlhf.text_stream import require_texts
from rollout.prompts import prompts_from_rows
from rollout.types import Prompt


@dataclass(frozen=True, slots=True)
class Setting:
    """The data of an evaluation.

    Attributes:
        tokenizer: Common to all models.
        prompts: What is asked.
        texts: Held-out text for perplexity; may be empty.
        tasks: May be empty.
        facts: Counts for the summary.
    """

    tokenizer: PreTrainedTokenizerBase
    prompts: Sequence[Prompt]
    texts: Sequence[str]
    tasks: Sequence[Task]
    facts: Mapping[str, Any]


def read_setting(config: EvalConfig) -> Setting:
    """Everything that `config.data` names.

    Raises:
        ValueError: bad rows, models of different tokenizers, or a proxy that is no reward source.
        MissingHarnessError: `harness` without its library.
    """
    _require_proxy(config)
    if config.harness is not None:
        require_harness()
    tokenizer = load_tokenizer(config.model)
    for field, model in [("baseline", config.baseline), *((f"models.{n}", m) for n, m in enumerate(config.models))]:
        _require_same_tokenizer(tokenizer, load_tokenizer(model), field)
    found = prompts_from_rows(
        load_rows(config.data.eval, field="data.eval"),
        tokenizer,
        max_prompt_tokens=config.max_prompt_tokens,
        source=f"data.eval={config.data.eval}",
        on_bad_row=config.data.on_bad_row,
        chat_template=config.model.chat_template,
    )
    prompts = found.prompts[: config.prompts]
    facts: dict[str, Any] = {"prompts": len(prompts), "skipped_rows": len(found.skipped)}
    if config.data.train is not None:
        trained_on = {str(row.get("prompt")) for row in load_rows(config.data.train, field="data.train")}
        facts["prompts_seen_in_training"] = sum(prompt.text in trained_on for prompt in prompts)
    return Setting(tokenizer, prompts, _texts(config), _tasks(config), facts)


def build_judges(config: EvalConfig) -> dict[str, ComparingJudge]:
    """The judges that compare, by name; endpoints are asked whether they are there.

    Raises:
        ValueError: a function that does not exist, a missing key, or two judges of one name.
        EndpointError: an endpoint does not answer.
    """
    names = [judge.name or _derived_name(judge) for judge in config.judges]
    taken = [*component_names(config.reward), *names]
    repeated = [name for name, count in Counter(taken).items() if count > 1]
    if repeated:
        raise ValueError(f"judges: {repeated[0]!r} names two judges; give each its own judges.<n>.name")
    return {name: _build(judge, Path(config.run_dir)) for name, judge in zip(names, config.judges, strict=True)}


def _build(judge: Judge, run_dir: Path) -> ComparingJudge:
    if not isinstance(judge, EndpointJudge):
        return FunctionVerdicts(judge)
    built = EndpointVerdicts(judge, ReplyStore(run_dir / REPLIES_FILE))
    built.require_reachable()
    return built


def _derived_name(judge: Judge) -> str:
    name = judge.model if isinstance(judge, EndpointJudge) else judge.function.rpartition(":")[2]
    return "".join(letter if letter.isalnum() or letter in "_.-" else "_" for letter in name)


def _require_proxy(config: EvalConfig) -> None:
    names = component_names(config.reward)
    if config.proxy is not None and config.proxy not in names:
        raise ValueError(f"proxy={config.proxy!r} is no reward source; there are {', '.join(names)}: name one of them")


def _require_same_tokenizer(candidate: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase, field: str) -> None:
    """Prompts are tokenized once and the KL compares the models token by token; another vocabulary would be noise."""
    if tokenizer_fingerprint(candidate) != tokenizer_fingerprint(other):
        raise ValueError(
            f"{field}.path={other.name_or_path!r} has another tokenizer than model.path={candidate.name_or_path!r}; a "
            "win rate and a KL are measured between models that share one: name a baseline of the same family"
        )


def _texts(config: EvalConfig) -> list[str]:
    if config.data.pretrain_eval is None:
        return []
    rows = load_rows(config.data.pretrain_eval, field="data.pretrain_eval")
    return require_texts(rows, source="data.pretrain_eval", on_bad_row=config.data.on_bad_row)[0]


def _tasks(config: EvalConfig) -> list[Task]:
    tasks = [
        read_task(load_rows(source, field="data.tasks"), source=source, on_bad_row=config.data.on_bad_row)
        for source in config.data.tasks
    ]
    repeated = [name for name, count in Counter(task.name for task in tasks).items() if count > 1]
    if repeated:
        raise ValueError(f"data.tasks: two files are called {repeated[0]!r}, and a report could not tell them apart")
    return tasks
