"""The stages of the command line: what each is called, which config it reads and which function runs it.

Targets are import strings, so that listing the stages loads nothing and running one loads only that one.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from types import MappingProxyType
from typing import Any


class UnknownStageError(ValueError):
    """A stage that does not exist."""


@dataclass(frozen=True)
class Stage:
    """One command of `rlhf`."""

    name: str
    """Word after `rlhf`."""
    summary: str
    """One line for the overview."""
    config: str
    """`module:class` of its config."""
    run: str
    """`module:function`, called as `run(config, resume=...)`."""
    examples: tuple[str, ...]
    """What may follow `rlhf <name>`."""
    plan: str | None = None
    """`module:function` that `--dry-run` calls as `plan(config) -> list of lines`; None where nothing is planned."""
    needs_config: bool = True
    """False where the defaults alone are a complete config."""
    words: str | None = None
    """Key that takes the words after `rlhf <name>` as its list; None where the first of them names a YAML file."""
    is_resumable: bool = False
    """True where a stopped run folder can be continued."""


_ALL = (
    Stage(
        name="corpus",
        summary="clean and deduplicate text for pretraining, and tell what each rule took away",
        config="rlhf.corpus.config:CorpusConfig",
        run="rlhf.corpus.command:run",
        examples=("configs/tiny/corpus.yaml", "configs/tiny/corpus.yaml data.train=pages.jsonl.gz c4.braces=false"),
    ),
    Stage(
        name="tokenizers",
        summary="compare tokenizers: tokens a word, bytes a token, round trip, and the loss per byte of a small model",
        config="rlhf.tokenizer_comparison.config:TokenizersConfig",
        run="rlhf.tokenizer_comparison.command:run",
        examples=("configs/tiny/tokenizers.yaml", "configs/tiny/tokenizers.yaml data.train=pages.jsonl trial=null"),
    ),
    Stage(
        name="pretrain",
        summary="train a causal language model from scratch, or continue one",
        config="rlhf.config:PretrainConfig",
        run="rlhf.trainers.pretrain:run",
        plan="rlhf.planning.command:describe_training",
        examples=("configs/tiny/pretrain.yaml", "configs/tiny/pretrain.yaml steps=200 optimizer.learning_rate=3e-4"),
        is_resumable=True,
    ),
    Stage(
        name="sft",
        summary="fine-tune on demonstrations, loss on completions only",
        config="rlhf.config:SftConfig",
        run="rlhf.trainers.sft:run",
        plan="rlhf.planning.command:describe_training",
        examples=("configs/tiny/sft.yaml", "configs/tiny/sft.yaml model.tuning.kind=lora model.tuning.rank=8"),
        is_resumable=True,
    ),
    Stage(
        name="text-to-text",
        summary="train an encoder-decoder: span corruption on text, or demonstrations; ask it tasks at the end",
        config="rlhf.config:TextToTextConfig",
        run="rlhf.trainers.text_to_text:run",
        examples=("configs/tiny/text-to-text.yaml", "configs/tiny/text-to-text-demonstrations.yaml steps=200"),
        is_resumable=True,
    ),
    Stage(
        name="rankings",
        summary="turn scores, votes of many raters or win/lose/tie logs into rankings or weighted pairs",
        config="reward.rankings.config:RankingsConfig",
        run="rlhf.rankings:run",
        examples=(
            "configs/tiny/rankings.yaml",
            "configs/tiny/rankings.yaml data.train=arena.jsonl data.format.kind=battles",
        ),
    ),
    Stage(
        name="reward",
        summary="train a reward model on ranked responses",
        config="rlhf.config:RewardConfig",
        run="rlhf.trainers.reward:run",
        plan="rlhf.planning.command:describe_training",
        examples=("configs/tiny/reward.yaml", "configs/tiny/reward.yaml data.train=comparisons.jsonl epochs=2"),
        is_resumable=True,
    ),
    Stage(
        name="dpo",
        summary="optimise a policy on ranked responses directly, without a reward model (a baseline for ppo)",
        config="rlhf.config:DpoConfig",
        run="rlhf.trainers.dpo:run",
        plan="rlhf.planning.command:describe_training",
        examples=("configs/tiny/dpo.yaml", "configs/tiny/dpo.yaml beta=0.3 data.train=pairs.jsonl"),
        is_resumable=True,
    ),
    Stage(
        name="distill",
        summary="teach a smaller model, cut out of a larger one or given, what the larger one says",
        config="rlhf.config:DistillConfig",
        run="rlhf.distillation.stage:run",
        examples=(
            "configs/tiny/distill.yaml",
            "configs/tiny/distill.yaml objective.temperature=2 objective.data_weight=0.5",
        ),
        is_resumable=True,
    ),
    Stage(
        name="normalize-reward",
        summary="fit the scale of a reward model that has none, such as one trained elsewhere",
        config="rlhf.scoring.config:NormalizeRewardConfig",
        run="rlhf.scoring.normalize:run",
        examples=(
            "model.path=runs/tiny/reward/model data.normalize=quickstart/demonstrations-eval replace=true",
            "model.path=owner/name data.normalize=demonstrations.jsonl run_dir=models/judge",
        ),
        needs_config=False,
    ),
    Stage(
        name="serve-reward",
        summary="score over HTTP, for runs on other machines",
        config="rlhf.scoring.config:ServeRewardConfig",
        run="rlhf.scoring.serve:run",
        examples=(
            "configs/tiny/serve-reward.yaml",
            "configs/tiny/serve-reward.yaml reward.0.path=runs/reward/model port=9000",
        ),
    ),
    Stage(
        name="ppo",
        summary="optimise a policy against a reward with PPO or PPO-ptx",
        config="rlhf.config:PpoConfig",
        run="rlhf.trainers.ppo:run",
        plan="rlhf.planning.command:describe",
        examples=(
            "configs/tiny/ppo.yaml",
            "configs/tiny/ppo.yaml placement.kind=split --dry-run",
            "configs/tiny/ppo.yaml --resume",
        ),
        is_resumable=True,
    ),
    Stage(
        name="plan",
        summary="tell where a PPO run would live and how much memory it would need, without loading a model",
        config="rlhf.config:PpoConfig",
        run="rlhf.planning.command:run",
        plan="rlhf.planning.command:describe",
        examples=(
            "configs/tiny/ppo.yaml",
            "configs/tiny/ppo.yaml placement.kind=split micro_batch_tokens=4096 activation_checkpointing=true",
        ),
    ),
    Stage(
        name="eval",
        summary="compare models on held-out prompts: win rate, KL, over-optimisation, alignment tax",
        config="rlhf.config:EvalConfig",
        run="rlhf.evaluation.command:run",
        examples=("configs/tiny/eval.yaml", "configs/tiny/eval.yaml model.path=runs/ppo/model prompts=100"),
    ),
    Stage(
        name="classify",
        summary="label texts: patterns and words, in context or trained, or a head; few-shot or with all rows",
        config="rlhf.config:ClassifyConfig",
        run="rlhf.classification.stage:run",
        examples=(
            "configs/tiny/classify.yaml",
            "configs/tiny/classify.yaml data.shots_per_class=8 model.tuning.kind=lora",
        ),
        is_resumable=True,
    ),
    Stage(
        name="methods",
        summary="compare ways of tuning on one classification task: accuracy, parameters, seconds, memory",
        config="rlhf.config:MethodsConfig",
        run="rlhf.classification.methods:run",
        examples=("configs/tiny/methods.yaml", "configs/tiny/methods.yaml seeds=[0,1]"),
        is_resumable=True,
    ),
    Stage(
        name="forgetting",
        summary="learn tasks in a row in several ways, and tell what each way forgot",
        config="rlhf.config:ForgettingConfig",
        run="rlhf.forgetting.task_sequence:run",
        examples=("configs/tiny/forgetting.yaml", "configs/tiny/forgetting.yaml seeds=[0,1]"),
        is_resumable=True,
    ),
    Stage(
        name="generate",
        summary="answer a file of prompts",
        config="rlhf.config:GenerateConfig",
        run="rlhf.generate:run",
        examples=("configs/tiny/generate.yaml", "configs/tiny/generate.yaml sampling.temperature=0.7 prompts=5"),
    ),
    Stage(
        name="chat",
        summary="talk to a model in the terminal",
        config="rlhf.config:ChatConfig",
        run="rlhf.generate:chat",
        examples=("configs/tiny/chat.yaml", "configs/tiny/chat.yaml model.path=runs/ppo/model"),
    ),
    Stage(
        name="export",
        summary="merge an adapter into a plain Hugging Face folder, verified",
        config="rlhf.config:ExportConfig",
        run="rlhf.export:run",
        examples=("configs/tiny/export.yaml", "configs/tiny/export.yaml model.path=runs/ppo/model run_dir=exported"),
    ),
    Stage(
        name="report",
        summary="write a run's page again, or compare several runs on one page",
        config="rlhf.reports.config:ReportConfig",
        run="rlhf.reports.command:run",
        examples=("runs/tiny/ppo", "runs/ppo/a runs/ppo/b output=a-and-b.html"),
        words="runs",
        needs_config=False,
    ),
    Stage(
        name="dashboard",
        summary="write the W&B workspace of a project, and send it where there is a key",
        config="rlhf.dashboard.config:DashboardConfig",
        run="rlhf.dashboard.command:run",
        examples=("my-project", "runs/tiny/ppo entity=my-team"),
        words="projects",
        needs_config=False,
    ),
    Stage(
        name="rounds",
        summary="collect, rank, reward model and PPO in rounds, each from the policy of the one before",
        config="rlhf.config:RoundsConfig",
        run="rlhf.rounds.pipeline:run",
        examples=(
            "configs/tiny/rounds.yaml",
            "configs/tiny/rounds.yaml ranker.kind=files",
            "configs/tiny/rounds.yaml --resume",
        ),
        is_resumable=True,
    ),
    Stage(
        name="quickstart",
        summary="the whole chain on a small embedded world, in minutes on a CPU",
        config="rlhf.config:QuickstartConfig",
        run="rlhf.quickstart.pipeline:run",
        examples=("", "run_dir=runs/second seed=1"),
        needs_config=False,
        is_resumable=True,
    ),
)
STAGES: Mapping[str, Stage] = MappingProxyType({stage.name: stage for stage in _ALL})


def find_stage(name: str, stages: Mapping[str, Stage] = STAGES) -> Stage:
    """Looks a stage up by name.

    Raises:
        UnknownStageError: there is none of that name; the message holds the closest one and the full list.
    """
    if name in stages:
        return stages[name]
    close = difflib.get_close_matches(name, stages, n=1)
    hint = f"did you mean {close[0]}?" if close else "see `rlhf --help`"
    raise UnknownStageError(f"stage: received {name!r}; allowed: {' | '.join(stages)}; {hint}")


def resolve(target: str) -> Any:
    """Imports `module:attribute`."""
    module, _, attribute = target.partition(":")
    return getattr(import_module(module), attribute)
