"""What every round was made from: provenance.json, a record for each step of each round.

    {"round": 2, "step": "collect", "inputs": [policy, prompts], "output": comparisons}

Owns the file. An item is a data set or a model with the SHA-256 of its files (`rlhf.runtime.lineage`), so that what
trained a model can be told from a file of the same name with other content.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rlhf.runtime.json_lines import write_atomically
from rlhf.runtime.lineage import LineageItem

PROVENANCE_FILE = "provenance.json"


class Provenance:
    """The records of one run folder, in the order in which they came."""

    def __init__(self, root: Path) -> None:
        self._path = root / PROVENANCE_FILE
        self._records: list[dict[str, Any]] = json.loads(self._path.read_text()) if self._path.exists() else []

    @property
    def records(self) -> Sequence[dict[str, Any]]:
        """What is known so far."""
        return self._records

    def note(
        self, number: int, step: str, inputs: Sequence[LineageItem], output: LineageItem | None, **facts: Any
    ) -> None:
        """Adds a record, or replaces that of the same step when it was done again."""
        assert output is not None, f"round {number}: {step} has left nothing"
        record = {
            "round": number,
            "step": step,
            **facts,
            "inputs": [asdict(item) for item in inputs],
            "output": asdict(output),
        }
        kept = [one for one in self._records if (one["round"], one["step"]) != (number, step)]
        self._records = [*kept, record]
        write_atomically(self._path, json.dumps(self._records, indent=2) + "\n")
