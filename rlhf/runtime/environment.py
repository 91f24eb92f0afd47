"""What a run's numbers depend on beside its config: library versions, Python, operating system, git commit.

Reads installed metadata only, so nothing heavy is imported. Leaves out host names, paths, the command line and
environment variables: none is needed to repeat a run, and each may hold something private.
"""

import platform
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

DISTRIBUTIONS = ("torch", "transformers", "tokenizers", "trl", "peft", "accelerate", "ray", "datasets", "wandb")
_GIT_TIMEOUT_SECONDS = 10.0


def describe_environment() -> dict[str, object]:
    """Versions and commit of this process, as plain JSON values; a library that is not installed is None."""
    return {
        "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {name: _installed_version(name) for name in DISTRIBUTIONS},
        **_source_revision(),
    }


def _installed_version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _source_revision() -> dict[str, object]:
    """Commit of the checkout this package runs from, and whether tracked files differ; None outside a checkout."""
    # An installed copy may lie inside somebody else's repository (a virtual environment in their project), whose commit
    # says nothing about us.
    if _git("ls-files", "--error-unmatch", Path(__file__).name) is None:
        return {"git_commit": None, "git_has_changes": None}
    changes = _git("status", "--porcelain", "--untracked-files=no")
    return {"git_commit": _git("rev-parse", "HEAD"), "git_has_changes": None if changes is None else bool(changes)}


def _git(*arguments: str) -> str | None:
    """Standard output of a git command run beside this file; None where git is absent, slow or says no."""
    command = ("git", "-C", str(Path(__file__).parent), *arguments)
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=_GIT_TIMEOUT_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() if result.returncode == 0 else None
