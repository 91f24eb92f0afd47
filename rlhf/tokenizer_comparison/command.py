"""`rlhf tokenizers`: tokenizers are trained, measured on held-out text and tried with a small model.

    tokenizers/<name>/    each new tokenizer, as transformers saves it

Owns files and the order of things. Numbers are `measures` and `trial`.
"""

from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from transformers import PreTrainedTokenizerBase

from policies.checkpoint import atomic_folder
from policies.tokenization import load_tokenizer_folder, train_tokenizer
from rlhf.data import load_rows
from rlhf.reports.page import write_report
from rlhf.runtime.run_folder import open_run, refuse_existing_run
from rlhf.runtime.terminal import stages_announce
from rlhf.text_stream import require_texts
from rlhf.tokenizer_comparison.config import ComparedTokenizer, ExistingTokenizer, TokenizersConfig
from rlhf.tokenizer_comparison.measures import TokenizerMeasures, measure_tokenizer, pieces_shown
from rlhf.tokenizer_comparison.page import console_table, tokenizers_page, verdicts_on
from rlhf.tokenizer_comparison.trial import TrialOutcome, cut, run_trial

_SHOWN_CHARACTERS = 300


@dataclass(frozen=True, slots=True)
class Contender:
    """A tokenizer and what was measured of it."""

    name: str
    kind: str
    tokenizer: PreTrainedTokenizerBase
    measures: TokenizerMeasures
    trial: TrialOutcome | None


def run(config: TokenizersConfig, *, resume: bool) -> None:
    """Compares, writes the run folder and prints the table.

    Raises:
        ValueError: what the user can fix, before the run folder is made.
    """
    assert not resume, "the command line offers --resume to resumable stages only"
    refuse_existing_run(config.run_dir)
    train, skipped = _texts(config, config.data.train, "data.train")
    held_out, more = _texts(config, config.data.eval, "data.eval")
    contenders = compare(config, train, held_out)
    summary = summarize(contenders, held_out, skipped_rows=len(skipped) + len(more))
    with open_run(config.run_dir, config, resume=False) as folder:
        for contender in contenders:
            if contender.kind != "path":
                with atomic_folder(folder.path / "tokenizers" / contender.name) as aside:
                    contender.tokenizer.save_pretrained(aside)
        folder.write_summary(summary)
        page = write_report(folder.path, tokenizers_page(folder.path, summary))
    if stages_announce():
        console = Console(highlight=False)
        console.print(console_table(summary))
        for verdict in verdicts_on(summary):
            console.print(verdict.text, style="yellow" if verdict.status == "warning" else "")
        console.print(f"report {page}", soft_wrap=True)


def compare(config: TokenizersConfig, train: list[str], held_out: list[str]) -> list[Contender]:
    """Each tokenizer with its measures, in the order of the configuration."""
    pieces, held_out_pieces = ([], []) if config.trial is None else (
        cut(train, config.trial.piece_bytes), cut(held_out, config.trial.piece_bytes)
    )  # fmt: skip
    contenders: list[Contender] = []
    for wanted in config.tokenizers:
        tokenizer = _tokenizer(wanted, train)
        trial = None
        if config.trial is not None:
            trial = run_trial(config, config.trial, tokenizer, pieces, held_out_pieces)
        measures = measure_tokenizer(tokenizer, held_out)
        contenders.append(Contender(wanted.name, wanted.kind, tokenizer, measures, trial))
    return contenders


def summarize(contenders: list[Contender], held_out: list[str], *, skipped_rows: int) -> dict[str, Any]:
    """The numbers of summary.json."""
    shown = held_out[0][:_SHOWN_CHARACTERS]
    return {
        "held_out_documents": len(held_out),
        "held_out_bytes": sum(len(text.encode()) for text in held_out),
        "skipped_rows": skipped_rows,
        "tokenizers": {
            contender.name: {
                "kind": contender.kind,
                **asdict(contender.measures),
                **({} if contender.trial is None else asdict(contender.trial)),
                "example": pieces_shown(shown, contender.tokenizer),
            }
            for contender in contenders
        },
    }


def _tokenizer(wanted: ComparedTokenizer, train: list[str]) -> PreTrainedTokenizerBase:
    if isinstance(wanted, ExistingTokenizer):
        return load_tokenizer_folder(wanted.path, field="tokenizers")
    try:
        return train_tokenizer(train, vocabulary_size=wanted.vocabulary_size, kind=wanted.kind)
    except ValueError as error:
        raise ValueError(f"tokenizers, {wanted.name}: {error}") from error


def _texts(config: TokenizersConfig, source: str, field: str) -> tuple[list[str], list[str]]:
    texts, skipped = require_texts(
        load_rows(source, field=field), source=f"{field}={source}", on_bad_row=config.data.on_bad_row
    )
    if not any(text.split() for text in texts):
        raise ValueError(f"{field}={source}: no text has a word; give rows with words")
    return texts, skipped
