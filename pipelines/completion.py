"""Completion in shells: commands, presets, spaces, settings, the values of choices, and paths.

The shell calls ``efafnet --complete SHELL WORD…`` with the words up to the cursor, the last one unfinished (bash gives
the line as it stands), and gets the candidates for that one, a line each. One that ends in "=", "." or "/" is not
yet a whole word: no blank follows. The scripts below are all that a shell is taught.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from efafnet.pipelines.commands import BY_NAME, COMMANDS, PRESET, Command
from efafnet.pipelines.user_errors import UsageError
from efafnet.platform import console
from efafnet.platform.storage import write_text

OPTIONS = ("--help", "--print-config")

_BASH = """\
_efafnet() {
    local IFS=$'\\n'
    COMPREPLY=($(efafnet --complete bash "${COMP_LINE:0:COMP_POINT}" 2>/dev/null))
    # Bash takes "=" for a word of its own, and completes only what follows it.
    [[ ${COMP_WORDS[COMP_CWORD]} == = || ${COMP_WORDS[COMP_CWORD-1]} == = ]] && COMPREPLY=("${COMPREPLY[@]#*=}")
    [[ ${#COMPREPLY[@]} == 1 && ${COMPREPLY[0]} == *[=./] ]] && compopt -o nospace
    # Only then does it quote what is special in names of files.
    [[ ${COMPREPLY[*]} == *[/\\ ]* ]] && compopt -o filenames
}
complete -F _efafnet efafnet
"""
_ZSH = """\
_efafnet() {
    local -a found
    found=(${(f)"$(efafnet --complete zsh "${(@)words[2,CURRENT]}" 2>/dev/null)"})
    compadd -S '' -- ${(M)found:#*[=./]}
    compadd -- ${found:#*[=./]}
}
(( $+functions[compdef] )) || { autoload -Uz compinit && compinit; }
compdef _efafnet efafnet
"""
_FISH = """\
complete -c efafnet -f -a '(efafnet --complete fish (commandline -opc)[2..-1] (commandline -ct) 2>/dev/null)'
"""
SCRIPTS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}


def answer(option: str, words: Sequence[str]) -> int:
    """Do what one of the three options asks for; the exit code.

    Raises:
        UsageError: the shell is none of those known.
        OSError: the shell's files cannot be written.
    """
    if option == "--complete":
        # Whatever is wrong with the words: an empty answer, and not an error in the middle of somebody's line.
        with suppress(Exception):
            for candidate in candidates(_split_line(words[1]) if words[0] == "bash" else words[1:]):
                console.say(candidate)
        return 0
    shell = words[0] if words else Path(os.environ.get("SHELL", "")).name
    if shell not in SCRIPTS:
        raise UsageError(f"the shell {shell!r} is not known; give one: {option} {' | '.join(SCRIPTS)}")
    if option == "--show-completion":
        console.say(SCRIPTS[shell].rstrip())
    else:
        install(shell, Path.home())
    return 0


def _split_line(line: str) -> list[str]:
    """The words after the program of a line that ends at the cursor; bash itself would cut them at each ``=``."""
    split = shlex.shlex(line, posix=True, punctuation_chars=False)
    split.whitespace_split, split.commenters = True, ""
    words: list[str] = []
    with suppress(ValueError):  # a quotation that is still open
        words.extend(split)
    begun = line[-1:].isspace() and not line.endswith("\\ ")
    return [*words[1:], ""] if begun else words[1:]


def install(shell: str, home: Path) -> None:
    """Write the script where the shell finds it; for bash and zsh a line of their start-up file reads it."""
    if shell == "fish":
        script = home / ".config" / "fish" / "completions" / "efafnet.fish"
        script.parent.mkdir(parents=True, exist_ok=True)
        write_text(script, SCRIPTS[shell])
        console.say(f"completion is in {script}; new shells have it")
        return
    script = home / ".local" / "share" / "efafnet" / f"completion.{shell}"
    script.parent.mkdir(parents=True, exist_ok=True)
    write_text(script, SCRIPTS[shell])
    start, line = home / f".{shell}rc", f'[ -f "{script}" ] && . "{script}"'
    before = start.read_text(encoding="utf-8") if start.exists() else ""
    if line not in before.splitlines():
        with start.open("a", encoding="utf-8") as file:
            file.write(f"{'' if before.endswith(chr(10)) or not before else chr(10)}{line}\n")
    console.say(f"completion is in {script}, which {start} reads; new shells have it, this one after: . {script}")


# ---- candidates


def candidates(words: Sequence[str]) -> list[str]:
    """What the last of ``words``, those after ``efafnet``, may become."""
    before, word = words[:-1], words[-1] if words else ""
    if not before:
        return _beginning(
            word, [*(command.name for command in COMMANDS), "--help", "--version", "--install-completion"]
        )
    if before[0] in ("--install-completion", "--show-completion"):
        return _beginning(word, SCRIPTS)
    if before[0] in ("help", "--help", "-h"):
        return _beginning(word, BY_NAME) if len(before) == 1 else []
    command = BY_NAME.get(before[0])
    if command is None:
        return []
    if "--help" in before or "-h" in before:
        return _keys(command, word, ends="")
    if word.startswith("-"):
        return _beginning(word, (*OPTIONS, *(f"--{name}" for name in command.options)))
    key, separator, value = word.partition("=")
    if separator:
        return [f"{key}={found}" for found in _values(command, key, value)]
    return [*_arguments(command, before[1:], word), *_keys(command, word, ends="=")]


def _beginning(word: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if name.startswith(word)]


def _arguments(command: Command, before: Sequence[str], word: str) -> list[str]:
    """What may stand as the command's next argument."""
    given = sum("=" not in part and not part.startswith("-") for part in before)
    if command.takes_many:
        given = min(given, len(command.positional) - 1)
    if given >= len(command.positional):
        return []
    name = command.positional[given]
    if name == PRESET:
        return [*_beginning(word, _presets()), *_paths(word, (".yaml", ".yml"))]
    if name in ("space", "study"):
        return [*_beginning(word, _spaces(name)), *_paths(word, (".yaml", ".yml"))]
    return _paths(word)


def _presets() -> list[str]:
    from efafnet.platform.configuration import preset_names

    return preset_names()


def _spaces(kind: str) -> list[str]:
    """Names of the spaces, or of the studies, that come with the project."""
    from efafnet.tune_spaces.reading import available_spaces
    from efafnet.tune_spaces.study import available_studies

    return available_spaces() if kind == "space" else available_studies()


def _keys(command: Command, word: str, ends: str) -> list[str]:
    """Settings and groups that begin so: one level at a time, and those whose last part begins so where none does."""
    from efafnet.platform.configuration import describe

    rows = {row.key: row.is_group for row in describe(command.settings())}
    level = word.count(".")
    found = [f"{key}." if group else f"{key}{ends}" for key, group in rows.items()
             if key.startswith(word) and key.count(".") == level]  # fmt: skip
    if found or not word:
        return found
    return [f"{key}{ends}" for key, group in rows.items() if not group and key.rpartition(".")[2].startswith(word)]


def _values(command: Command, key: str, value: str) -> Iterator[str]:
    """What a setting may be: its choices, or paths."""
    from efafnet.platform.configuration import describe, whole_keys

    whole = whole_keys([f"{key}={value}"], command.settings())[0].partition("=")[0]
    kinds = [row.type for row in describe(command.settings()) if row.key == whole]
    words = [part.strip() for kind in kinds for part in kind.replace(" or ", " | ").split(" | ")]
    yield from _beginning(value, dict.fromkeys(part for part in words if part.isidentifier() and part not in _KINDS))
    # Stores may be addresses, so their settings are texts.
    if "path" in words or whole.startswith("data."):
        yield from _paths(value)


_KINDS = ("int", "float", "text", "path", "list", "map", "number")
"""What ``HelpRow.type`` calls values that are no choices."""


def _paths(word: str, endings: tuple[str, ...] = ()) -> list[str]:
    """Files and directories that begin so; of the files only those with one of the endings, if any are given."""
    folder, _, start = word.rpartition("/")
    place = Path(f"{folder}/" if "/" in word else ".").expanduser()
    found = []
    with suppress(OSError):
        for path in sorted(place.iterdir()):
            hidden = path.name.startswith(".") and not start.startswith(".")
            if path.name.startswith(start) and not hidden and (path.is_dir() or not endings or path.suffix in endings):
                found.append(f"{word[: len(word) - len(start)]}{path.name}{'/' if path.is_dir() else ''}")
    return found
