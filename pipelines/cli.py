"""The command line: its words become the settings of a command, whose function is imported when it is called.

No library for command lines is used: typer, cyclopts and click know options of a function, and those of
pydantic-settings are one flat list; here a command has up to 170 settings in groups, written ``group.key=value`` as in
Hydra, with presets below them and keys found by their last part. What a library would add, parsing, help and completion
of shells, are the three small modules beside this one; the overview would cost three times its present time.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any

from efafnet.pipelines.commands import BY_NAME, COMMANDS, Command
from efafnet.pipelines.user_errors import UsageError, user_message
from efafnet.platform import console
from efafnet.platform.garbage import importing
from efafnet.platform.interruption import LastAct, ending_on_signals, exit_code, report_stop
from efafnet.platform.ray_output import quiet_native

COMPLETING = ("--install-completion", "--show-completion", "--complete")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command: the words given, or those of this process, which then ends with it.

    Returns:
        The exit code: 0 done, 1 it says no (doctor), 2 a user's error, 130 interrupted, 143 terminated, 129 the
        terminal was closed.
    """
    console.open_streams()
    with quiet_native(), ending_on_signals():
        if arguments is not None:
            return _main(list(arguments))
        last = LastAct()
        last.code = _main(sys.argv[1:])
        return last.code


def _main(words: list[str]) -> int:
    try:
        return _dispatch(words)
    except KeyboardInterrupt as stop:
        report_stop(stop)
        return exit_code(stop)
    except BrokenPipeError:
        # The reader of our output (head, less) has gone; Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        message = user_message(error)
        if message is None or os.environ.get("EFAFNET_TRACEBACK"):
            raise
        console.fail(message)
        return 2


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in {"-h", "--help", "help"}:
        if words[1:]:
            return _dispatch([words[1], "--help", *words[2:]])
        from efafnet.pipelines.command_help import print_commands

        print_commands(COMMANDS)
        return 0
    if words[0] == "--version":
        console.say(_version())
        return 0
    if words[0] in COMPLETING:
        from efafnet.pipelines.completion import answer

        return answer(words[0], words[1:])
    from efafnet.pipelines.arguments import as_settings, corrected

    command = _command(words[0])
    words = [words[0], *as_settings(command, words[1:])]
    options = {word for word in words[1:] if word.startswith("-") and len(word) > 1}
    rest = [word for word in words[1:] if word not in options]
    unknown = options - {"-h", "--help", "--print-config"}
    if unknown:
        raise UsageError(corrected(command, min(unknown), words))
    if asked := options & {"-h", "--help"}:
        from efafnet.pipelines.command_help import print_help

        print_help(command, [word for word in words[words.index(min(asked)) :] if word not in options])
        return 0
    return _run(command, rest, print_only="--print-config" in options)


def _command(name: str) -> Command:
    if name in BY_NAME:
        return BY_NAME[name]
    import difflib

    close = difflib.get_close_matches(name, BY_NAME, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise UsageError(f"there is no command {name!r}{hint}; commands: {', '.join(BY_NAME)}")


def _run(command: Command, words: list[str], *, print_only: bool) -> int:
    from efafnet.pipelines.arguments import base_tree, check_given
    from efafnet.platform.configuration import absolute_paths, apply_overrides, resolve, to_yaml, whole_keys

    tree, source, overrides = base_tree(command, words)
    with importing():
        model = command.settings()
    whole = apply_overrides(tree, whole_keys(overrides, model))
    check_given(command, whole)
    config = absolute_paths(resolve(model, whole, source))
    if print_only:
        console.say(to_yaml(config).rstrip())
        return 0
    _warn_of_lost_paths(config)
    with importing():
        run = getattr(importlib.import_module(command.module), command.run)
    outcome = run(config)
    return outcome if isinstance(outcome, int) else 0


def _warn_of_lost_paths(config: Any) -> None:
    """Name the paths that a submitted job would read or write in a copy of the tree which Ray deletes after it."""
    from efafnet.platform.configuration import paths_of
    from efafnet.platform.provenance import is_job_copy

    lost = [f"{key}={path}" for key, path in paths_of(config).items() if is_job_copy(path)]
    if lost:
        console.warn(
            f"{', '.join(lost)}: in the job's copy of the tree, which Ray deletes; what is to stay needs an "
            "absolute path on storage that all nodes share"
        )


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return f"efafnet {version('efafnet')}"
    except PackageNotFoundError:
        return "efafnet, a checkout that is not installed"
