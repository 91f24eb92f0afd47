"""`python -m tests.benchmarks.bench_prompting`: prompts beside fine-tuning and a head alone, on film-review sentences.

Runs configs/methods/rt-polarity-16.yaml (sixteen rows of each label, three seeds) and configs/methods/rt-polarity.yaml
(all rows), with the base of configs/pretrain/rt-polarity.yaml, which must be there. Tables that are finished are read.
Writes results/prompting.json.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from rlhf.runtime.environment import describe_environment
from rlhf.runtime.run_folder import RunFiles

RESULTS = Path(__file__).parent / "results" / "prompting.json"
BASE = ("pretrain", "configs/pretrain/rt-polarity.yaml")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of the comparison on all rows")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    tables = {
        "16 rows of each label": _table("rt-polarity-16", []),
        "all rows": _table("rt-polarity", [f"seeds={json.dumps(options.seeds, separators=(',', ':'))}"]),
    }
    base = {"command": f"rlhf {' '.join(BASE)}", **RunFiles("runs/pretrain/rt-polarity").read_summary()}
    result = {"base": base, **tables, **describe_environment()}
    options.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def _table(name: str, overrides: list[str]) -> dict[str, object]:
    arguments = ["methods", f"configs/methods/{name}.yaml", *overrides]
    files = RunFiles(f"runs/methods/{name}")
    if not files.read_summary():
        resume = ["--resume"] if files.holds_run() else []
        subprocess.run([sys.executable, "-m", "rlhf.cli", *arguments, *resume], check=True)
    return {"command": f"rlhf {' '.join(arguments)}", **files.read_summary()}


if __name__ == "__main__":
    main()
