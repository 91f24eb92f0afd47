"""How a command ends: the exit code of each kind of failure and the line that says so.

    0    done
    1    the outside world failed (disk, cluster, a worker): a RuntimeError subclass of ours
    2    the user can fix it: ValueError, or a file that is missing or cannot be opened
    130  interrupted with Ctrl-C

Anything else is a defect: it keeps its traceback and Python's exit code 1. RLHF_DEBUG=1 shows the others' too.
Owns wording only; what went wrong is said by whoever raised.
"""

import traceback
from pathlib import Path

from policies.disk import DISK_ERRNOS

OK = 0
OUTSIDE_FAILURE = 1
USER_ERROR = 2
INTERRUPTED = 130

_OUR_PACKAGES = frozenset({"rlhf", "policies", "reward", "rollout"})
_PATH_ERRORS = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError)
_ROOT = Path(__file__).resolve().parent.parent


def original(error: BaseException) -> BaseException:
    """The exception that a worker raised, taken out of Ray's wrapper; any other exception itself."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, BaseException) and type(error).__module__.startswith("ray."):
        return original(cause)
    return error


def status_of(error: BaseException) -> int | None:
    """Exit code of a failure that has one; None for a defect, which should keep its traceback."""
    error = original(error)
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    if isinstance(error, ValueError) or (isinstance(error, _PATH_ERRORS) and error.filename is not None):
        return USER_ERROR
    if isinstance(error, OSError) and error.errno in DISK_ERRNOS:
        return OUTSIDE_FAILURE
    return OUTSIDE_FAILURE if isinstance(error, RuntimeError) and _is_our_class(error) else None


def lines_for(error: BaseException) -> list[str]:
    """What to print for a failure: one line, or one for each problem of a config; the failure's notes end the last."""
    cause = original(error)
    lines = _lines(cause)
    notes = [*getattr(cause, "__notes__", ()), *(getattr(error, "__notes__", ()) if error is not cause else ())]
    return [*lines[:-1], "; ".join([lines[-1], *notes])]


def _lines(error: BaseException) -> list[str]:
    if isinstance(error, KeyboardInterrupt):
        return ["interrupted"]
    # Of ours, a TimeoutError is one: it says itself what happened.
    if isinstance(error, OSError) and not _is_our_class(error):
        reason = (error.strerror or "cannot be opened").lower()
        remedy = "make room on that disk" if error.errno in DISK_ERRNOS else "check the path and its permissions"
        return [f"error: {error.filename or 'a file of the run'}: {reason}; {remedy}"]
    if _is_our_class(error) or _is_raised_by_us(error):
        lines = [line for line in str(error).splitlines() if line.strip()]
        return [f"error: {line}" for line in lines or [type(error).__name__]]
    # A library's message rarely names our field; where it arose is the next best thing.
    message = " ".join(str(error).split()) or type(error).__name__
    return [f"error: {message} (raised in {_origin(error)}; RLHF_DEBUG=1 shows the traceback)"]


def _is_our_class(error: BaseException) -> bool:
    return type(error).__module__.partition(".")[0] in _OUR_PACKAGES


def _is_raised_by_us(error: BaseException) -> bool:
    frames = traceback.extract_tb(error.__traceback__)
    # No frames: it came from another process, whose own code has worded it.
    return not frames or _is_our_file(frames[-1].filename)


def _origin(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    callers = [frame for frame in frames if _is_our_file(frame.filename)]
    return ", called from ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in [frames[-1], *callers[-1:]])


def _is_our_file(filename: str) -> bool:
    path = Path(filename)
    # Not by the root alone: a virtual environment may lie inside the checkout.
    return path.is_relative_to(_ROOT) and path.relative_to(_ROOT).parts[0] in _OUR_PACKAGES
