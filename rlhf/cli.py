"""The command line: `rlhf STAGE CONFIG [a.b=value ...] [--dry-run] [--resume]`.

Owns arguments and the order of events: arguments, then config, then (and only then) the libraries of the chosen stage.
What a stage does is its `run` function; which stages exist is `stages`; help texts are `cli_help`; how a failure ends
is `exit_status`.
"""

import argparse
import difflib
import json
import os
import shlex
import sys
import traceback
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from rlhf import __version__, cli_help, exit_status
from rlhf.process_environment import prepare_environment
from rlhf.stages import STAGES, Stage, find_stage, resolve

# Not imported here: the config loader, which brings pydantic. `rlhf --help` answers without it.
_LOADER = "rlhf.config_loading.loader"


class UsageError(ValueError):
    """Arguments that form no command."""


@dataclass(frozen=True)
class _Request:
    """One command, taken apart."""

    stage: Stage
    config: Path | None
    overrides: tuple[str, ...]
    is_dry_run: bool
    is_resume: bool

    def command(self, *options: str) -> str:
        config = [str(self.config)] if self.config else []
        return shlex.join(["rlhf", self.stage.name, *config, *self.overrides, *options])


class _Parser(argparse.ArgumentParser):
    """Parser of a stage's arguments whose complaints are exceptions, so that all errors leave by one door."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see `{self.prog} --help`")


def main(arguments: Sequence[str] | None = None, *, stages: Mapping[str, Stage] = STAGES) -> int:
    """Runs one command and returns its exit code (see `exit_status`); a defect is raised.

    Args:
        arguments: what follows `rlhf`; None takes the process's own.
        stages: registry to choose from.
    """
    prepare_environment()
    try:
        return _dispatch(sys.argv[1:] if arguments is None else list(arguments), stages)
    except (Exception, KeyboardInterrupt) as error:
        status = exit_status.status_of(error)
        if status is None:
            raise
        _report(error)
        return status


def _dispatch(arguments: list[str], stages: Mapping[str, Stage]) -> int:
    name, *rest = arguments or ["--help"]
    if name in ("-h", "--help", "help"):
        return _print(cli_help.overview(stages.values()))
    if name == "--version":
        return _print([f"rlhf {__version__}"])
    stage = find_stage(name, stages)
    if {"-h", "--help"} & set(rest):
        return _print(cli_help.stage_help(stage))
    if "--keys" in rest:
        return _print(cli_help.key_list(resolve(f"{_LOADER}:describe_fields")(resolve(stage.config))))
    return _execute(_parse(stage, rest))


def _parse(stage: Stage, arguments: list[str]) -> _Request:
    parser = _Parser(prog=f"rlhf {stage.name}", add_help=False, allow_abbrev=False)
    parser.add_argument("words", nargs="*")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--resume", action="store_true")
    given, unknown = parser.parse_known_intermixed_args(arguments)
    _refuse_unknown_options(unknown, parser)
    if given.resume and not stage.is_resumable:
        raise UsageError(f"--resume: rlhf {stage.name} keeps no state to continue from; run it again without --resume")
    config, overrides = _split_words(stage, given.words)
    return _Request(stage, config, overrides, is_dry_run=given.dry_run, is_resume=given.resume)


def _refuse_unknown_options(unknown: list[str], parser: _Parser) -> None:
    if unknown:
        close = difflib.get_close_matches(unknown[0], cli_help.OPTIONS, n=1)
        parser.error(f"{unknown[0]}: unknown option{f', did you mean {close[0]}?' if close else ''}")


def _split_words(stage: Stage, words: list[str]) -> tuple[Path | None, tuple[str, ...]]:
    """The config file, where the first word is one, and the overrides."""
    if stage.words is not None:
        named = [word for word in words if "=" not in word or Path(word).exists()]
        listed = (f"{stage.words}={json.dumps(named)}",) if named else ()
        return None, (*listed, *(word for word in words if word not in named))
    has_config = bool(words) and ("=" not in words[0] or Path(words[0]).is_file())
    if not has_config and stage.needs_config:
        raise UsageError(
            f"rlhf {stage.name}: CONFIG is missing; name a YAML file first, as in `{cli_help.example(stage)}`"
        )
    return (Path(words[0]), tuple(words[1:])) if has_config else (None, tuple(words))


def _execute(request: _Request) -> int:
    config = resolve(f"{_LOADER}:load_config")(resolve(request.stage.config), request.config, request.overrides)
    if request.is_dry_run:
        return _print(_plan(request.stage, config))
    _refuse_occupied_folder(request, config)
    run = resolve(request.stage.run)
    try:
        run(config, resume=request.is_resume)
    except BaseException as error:
        is_resumable = not getattr(exit_status.original(error), "nothing_to_resume", False)
        if is_resumable and exit_status.status_of(error) != exit_status.USER_ERROR:
            error.add_note(_state_after_stop(request, config, error))
        raise
    return exit_status.OK


def _refuse_occupied_folder(request: _Request, config: Any) -> None:
    """Says what the stage itself would say, before its libraries load."""
    run_dir = getattr(config, "run_dir", None)
    if request.stage.is_resumable and not request.is_resume and run_dir is not None:
        resolve("rlhf.runtime.run_folder:refuse_existing_run")(run_dir)


def _plan(stage: Stage, config: Any) -> list[str]:
    """The resolved config as YAML; the plan follows in comments, so that the whole output is a config again."""
    lines = resolve(f"{_LOADER}:dump_config")(config).splitlines()
    plan = resolve(stage.plan)(config) if stage.plan else []
    return lines + [f"# {line}".rstrip() for line in plan]


def _state_after_stop(request: _Request, config: Any, error: BaseException) -> str:
    # The quickstart chooses its folder itself where none is given; all its folders stand in runs/.
    folder = Path(getattr(config, "run_dir", None) or "runs")
    if not request.stage.is_resumable or not folder.exists():
        return f"nothing was saved; start again with: {request.command()}"
    # A chain of stages has the run folders of its stages one level deeper.
    checkpoints = [path for depth in ("", "*/", "*/*/") for path in folder.glob(f"{depth}checkpoints/step-*")]
    newest = max(checkpoints, key=lambda path: path.stat().st_mtime, default=None)
    state = f"state saved in {newest.parent}" if newest else "no checkpoint was saved yet"
    # --resume takes no other configuration, and the same one would end here again.
    if getattr(exit_status.original(error), "resuming_repeats_it", False):
        return state
    return f"{state}; continue with: {request.command('--resume')}"


def _report(error: BaseException) -> None:
    if os.environ.get("RLHF_DEBUG") == "1":
        traceback.print_exception(error)
    for line in exit_status.lines_for(error):
        sys.stderr.write(f"{line}\n")


def _print(lines: Iterable[str]) -> int:
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    return exit_status.OK


if __name__ == "__main__":
    sys.exit(main())
