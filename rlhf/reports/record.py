"""What a run was started with and what it left behind: the setting for the top of a page, the record for its end.

Owns which settings are worth a line; the whole configuration stands in the record.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any, cast

from rlhf.reports.page import Cell, Link, Listing, Section, Table
from rlhf.runtime.run_folder import Row, RunFiles
from rlhf.runtime.saved_config import leaves

_SETTINGS = (
    ("model", ("model.path", "model.architecture")),
    ("baseline", ("baseline.path",)),
    ("teacher", ("teacher.path",)),
    ("tuning", ("model.tuning.kind", "model.tuning.rank")),
    ("dtype, quantization", ("model.dtype", "model.quantization")),
    ("trained on", ("data.train",)),
    ("held out", ("data.eval",)),
    ("loss", ("loss.kind", "beta")),
    ("advantages", ("algorithm.advantages.kind",)),
    ("KL penalty, coefficient, target", ("algorithm.kl.kind", "algorithm.kl.coefficient", "algorithm.kl.target")),
    ("PPO-ptx coefficient", ("algorithm.ptx.coefficient",)),
    ("prompts a step, responses a prompt", ("rollout.prompts_per_step", "rollout.responses_per_prompt")),
    ("longest response, tokens", ("rollout.sampling.max_response_tokens", "sampling.max_response_tokens")),
    ("temperature", ("rollout.sampling.temperature", "sampling.temperature")),
    ("learning rate", ("optimizer.learning_rate", "optimizer.schedule")),
    ("steps", ("steps",)),
    ("epochs", ("epochs",)),
    ("placement", ("placement.kind",)),
    ("seed", ("seed",)),
)
"""A line each: its name, and the keys whose values it shows one after the other."""
_VERSIONS = ("torch", "transformers", "trl", "peft")
_LINKED = (
    "config.yaml",
    "metrics.jsonl",
    "samples.jsonl",
    "alerts.jsonl",
    "summary.json",
    "environment.json",
    "model/",
)


def setting_sections(files: RunFiles) -> list[Section]:
    """The settings that decide a run, and the versions that it ran with; none without a configuration."""
    if not files.config_path.exists():
        return []
    config = files.read_config()
    flat = leaves(config)
    rows: list[list[Cell]] = [[name, value] for name, keys in _SETTINGS if (value := _values(flat, keys))]
    for name, texts in (("reward", _rewards(config)), ("versions", _versions(files))):
        rows.extend([name, text] for text in texts)
    return [Section("Setting", tables=[Table(("", ""), rows)])] if rows else []


def record_sections(files: RunFiles) -> list[Section]:
    """The whole configuration and environment to unfold, and links to the run's files."""
    titled = (("Configuration", files.config_path), ("Environment", files.environment_path))
    listings = [Listing(title, path.read_text(encoding="utf-8")) for title, path in titled if path.exists()]
    links = [Link(name, name) for name in _LINKED if (files.path / name).exists()]
    text = "What this run was started with, and the files that it left behind."
    return [Section("Record", text, listings=listings, links=links)] if listings or links else []


def _values(flat: Row, keys: tuple[str, ...]) -> str:
    return ", ".join(str(flat[key]) for key in keys if flat.get(key) not in (None, {}, []))


def _rewards(config: Row) -> Iterator[str]:
    rewards = config.get("reward")
    for source in cast(list[Mapping[str, Any]], rewards) if isinstance(rewards, list) else []:
        named = source.get("path") or source.get("function") or source.get("url") or ""
        parts = (source.get("name") or source["kind"], named, f"weight {source.get('weight', 1.0):g}")
        yield ", ".join(str(part) for part in parts if part)


def _versions(files: RunFiles) -> Iterator[str]:
    if not files.environment_path.exists():
        return
    session = json.loads(files.environment_path.read_text(encoding="utf-8"))["sessions"][-1]
    versions = [f"{name} {session['versions'][name]}" for name in _VERSIONS if session["versions"].get(name)]
    commit = session.get("git_commit")
    yield ", ".join([*versions, *([f"commit {commit[:12]}"] if commit else [])])
