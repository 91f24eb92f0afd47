"""`rlhf normalize-reward`: the scale of a reward model that has none, because it was trained elsewhere.

Owns reading the responses and writing the scale beside the model, or with a copy of it. They are read exactly as a
run's `kind: model` reads them, so that the scale holds there. The statistics are `reward.normalization`.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from transformers import PreTrainedTokenizerBase

from policies.sources import require_model
from policies.tokenization import render_prompt
from reward.interface import RewardRequest, Scores
from reward.model import RewardModel
from reward.normalization import IDENTITY, NORMALIZER_FILE, Normalizer
from reward.row_fields import BadRowError, Row, RowReader, read_field, read_prompt, read_response
from reward.scoring import LearnedReward
from rlhf.data import load_rows
from rlhf.scoring.config import NormalizeRewardConfig


def run(config: NormalizeRewardConfig, *, resume: bool) -> None:
    """Fits the scale, writes it and says what it is.

    Raises:
        ValueError: what the user can fix; what needs no model is refused before one is loaded.
    """
    assert not resume, "the command line offers --resume to resumable stages only"
    target = _target(config)
    source = f"data.normalize={config.data.normalize}"
    rows = load_rows(config.data.normalize, field="data.normalize")
    about = config.model
    model = RewardModel.from_folder(
        about.path, device=about.device, dtype=about.dtype, eos_token=about.eos_token, pad_token=about.pad_token
    )
    reader = RowReader(source, config.data.on_bad_row)
    requests = read_requests(rows, reader, model.tokenizer, with_prompt=about.reads == "prompt_and_response")
    scores = _scored(LearnedReward(model, IDENTITY, about), requests, reader)
    normalizer = Normalizer.fit(scores, source=source)
    if config.run_dir is None:
        normalizer.save(target)
    else:
        model.save(target, normalizer=normalizer, metadata={"stage": "normalize-reward", "started_from": about.path})
    Console(soft_wrap=True).print(
        f"mean {normalizer.mean:.6g} and standard deviation {normalizer.std:.6g} over {normalizer.count} responses "
        f"({len(reader.skipped)} skipped) are in {target / NORMALIZER_FILE}",
        highlight=False,
        markup=False,
    )


def read_requests(
    rows: Sequence[Row], reader: RowReader, tokenizer: PreTrainedTokenizerBase, *, with_prompt: bool
) -> list[RewardRequest]:
    """Rows with `completion`, and with `prompt` where the model is shown one -> what a reward model is asked.

    Raises:
        ValueError: a bad row, unless the reader skips it, or no good one.
    """

    def read(row: Row, _place: str) -> RewardRequest:
        prompt = read_prompt(row, lambda messages: render_prompt(messages, tokenizer)) if with_prompt else ""
        # A model may have answered nothing at all, so that is no bad row.
        return RewardRequest(prompt, read_response(read_field(row, "completion"), "completion", may_be_empty=True))

    return reader.read(rows, read)


def _scored(reward: LearnedReward, requests: Sequence[RewardRequest], reader: RowReader) -> Scores:
    """The scores of the responses that have one."""
    output = reward(requests)
    for failure in output.failures:
        reader.refuse(f"{reader.source}, response {failure.index}", BadRowError(failure.reason))
    return output.scores[np.isfinite(output.scores)]


def _target(config: NormalizeRewardConfig) -> Path:
    path = config.model.path
    require_model(path, field="model.path")
    if config.run_dir is not None:
        folder = Path(config.run_dir)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ValueError(f"run_dir={config.run_dir!r} exists and is not empty; name another folder")
        return folder
    if not Path(path).is_dir():
        raise ValueError(
            f"model.path={path!r} is no folder of yours; name one for a copy with its scale: run_dir=FOLDER"
        )
    if (Path(path) / NORMALIZER_FILE).exists() and not config.replace:
        raise ValueError(_kept_scale(path))
    return Path(path)


def _kept_scale(path: str) -> str:
    source = Normalizer.load(path).source
    return f"model.path={path!r} has a scale already, from {source}; leave it, or set replace=true to overwrite it"
