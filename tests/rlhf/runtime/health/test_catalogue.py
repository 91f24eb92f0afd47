"""Which rules a stage gets, and that their words name things that exist."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from reward.config import LengthPenaltyRule
from rlhf.config import OptimizerConfig, PpoConfig, PretrainConfig, RewardConfig, SftConfig
from rlhf.runtime.health.catalogue import (
    explained_rules,
    language_model_rules,
    ppo_rules,
    reward_model_rules,
    rules_for,
)
from rlhf.runtime.health.history import History
from rlhf.runtime.health.rule import Rule
from rlhf.runtime.metric_registry import find_metric
from tests.tiny_ppo import ppo_config

EVERY_RULE = {
    rule.name: rule for rules in (explained_rules(), language_model_rules(), reward_model_rules()) for rule in rules
}


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The configuration classes inside an annotation: unions, optionals and tuples."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from models_in(argument)


def is_config_key(path: str, model: type[BaseModel]) -> bool:
    head, _, rest = path.partition(".")
    field = model.model_fields.get(head)
    if field is None:
        return False
    return not rest or any(is_config_key(rest, inner) for inner in models_in(field.annotation))


def quoted(rule: Rule) -> list[str]:
    """What a rule's texts put between backticks, without the value after an equals sign."""
    return [
        name.partition("=")[0]
        for text in (rule.symptom, rule.cause, rule.remedy)
        for name in re.findall(r"`([^`]*)`", text)
    ]


@pytest.mark.parametrize("rule", EVERY_RULE.values(), ids=EVERY_RULE)
def test_a_rule_names_documented_metrics_and_existing_configuration_keys(rule: Rule) -> None:
    kinds = {LengthPenaltyRule.model_fields["kind"].default}
    for name in quoted(rule):
        assert find_metric(name.replace("<name>", "x")) or is_config_key(name, PpoConfig) or name in kinds, name


@pytest.mark.parametrize("rule", EVERY_RULE.values(), ids=EVERY_RULE)
def test_a_rule_has_words_for_symptom_cause_and_remedy(rule: Rule) -> None:
    assert min(len(text) for text in (rule.symptom, rule.cause, rule.remedy)) > 20
    assert rule.cause.endswith(".")
    assert rule.remedy.endswith(".")


def test_names_of_rules_are_unique_within_a_stage() -> None:
    for rules in (explained_rules(), language_model_rules(), reward_model_rules()):
        assert len({rule.name for rule in rules}) == len(rules)


def test_no_rule_judges_a_run_without_numbers() -> None:
    assert [rule.name for rule in EVERY_RULE.values() if rule.check(History()) is not None] == []


def finding(rules: tuple[Rule, ...], name: str, **columns: list[float]) -> str | None:
    (rule,) = [rule for rule in rules if rule.name == name]
    history = History()
    for step in range(len(next(iter(columns.values())))):
        history.append(step, {key.replace("__", "/"): values[step] for key, values in columns.items()})
    return rule.check(history)


def test_the_rules_of_a_ppo_run_know_its_target_precision_step_size_and_watched_sources(
    tmp_path: Path, tiny_llama_folder: Path
) -> None:
    rules = rules_for(
        ppo_config(
            tmp_path,
            tiny_llama_folder,
            model={"dtype": "bfloat16"},
            algorithm={"kl": {"kind": "adaptive", "target": 2.0}},
            reward=[{"kind": "length", "maximum_words": 2}, {"kind": "regex", "pattern": "a", "weight": 0.0}],
        )
    )
    assert finding(rules, "kl_runaway", objective__kl=3 * [6.5]) is not None
    assert finding(rules, "kl_runaway", objective__kl=3 * [5.5]) is None
    assert finding(rules, "first_pass_ratio", policy__first_step_ratio_error=[0.3]) is None
    assert finding(rules, "dropped_samples", rollout__dropped=5 * [1.0]) is not None, "1 of 4"
    falling = {
        "objective__scores": [float(n) for n in range(40)],
        "reward__regex": [float(abs(20 - n)) for n in range(40)],
    }
    assert finding(rules, "over_optimisation", **falling) is None
    risen_and_fallen = [20.0 - abs(20 - n) for n in range(40)]
    assert finding(rules, "over_optimisation", **falling | {"reward__regex": risen_and_fallen}) is not None
    assert finding(rules, "over_optimisation", **falling | {"reward__length": risen_and_fallen}) is None


def test_the_other_stages_watch_their_own_loss() -> None:
    model = {"path": "x"}
    data = {"train": "x"}
    sft = SftConfig.model_validate({"run_dir": "r", "model": model, "data": data})
    pretrain = PretrainConfig.model_validate({"run_dir": "r", "model": model, "data": data})
    reward = RewardConfig.model_validate({"run_dir": "r", "model": model, "data": data})
    jump = [*20 * [1.0], 3.0]
    assert finding(rules_for(sft), "loss_spike", loss__train=jump) is not None
    assert finding(rules_for(pretrain), "loss_spike", loss__train=jump) is not None
    assert finding(rules_for(reward), "loss_spike", rm__loss=jump) is not None
    assert isinstance(sft.optimizer, OptimizerConfig)
    assert not {rule.name for rule in rules_for(sft)} & {"kl_runaway", "clip_fraction"}


def test_a_rule_of_ppo_is_listed_for_people_too() -> None:
    assert {rule.name for rule in ppo_rules(samples_per_step=1)} < {rule.name for rule in explained_rules()}
