"""Help of the command line: the overview, and the settings of a command, those that matter first."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from efafnet.pipelines.commands import PRESET, Command
from efafnet.pipelines.user_errors import UsageError
from efafnet.platform import console

if TYPE_CHECKING:
    from efafnet.platform.configuration_help import HelpRow


def print_commands(commands: Sequence[Command]) -> None:
    """Print the overview."""
    console.say("usage: efafnet COMMAND [ARGUMENT …] [key=value …]")
    console.say()
    width = max(len(command.name) for command in commands)
    for command in commands:
        console.say(f"  {command.name:<{width}}  {command.help}")
    console.say()
    console.say("efafnet COMMAND --help explains every setting of a command, --help GROUP those of one group;")
    console.say("--print-config shows the settings a command line stands for. A setting's last name is enough where")
    console.say("only one ends so (lr=1e-3). workers=0 works in this process, without Ray; tune and study start Ray in")
    console.say("any case, and train each run in one process of it.")
    console.say("--install-completion lets bash, zsh or fish complete commands, presets, settings, values and paths.")
    console.say("EFAFNET_TRACEBACK=1 shows tracebacks.")


def print_help(command: Command, prefixes: Sequence[str]) -> None:
    """Print every setting of a command: those that matter first, those of no group, and then group by group.

    Args:
        command: what is explained.
        prefixes: groups or settings asked for; none for all.

    Raises:
        UsageError: there is no such group or setting.
    """
    from efafnet.platform.configuration import describe, preset_names, unknown_key

    model = command.settings()
    rows = describe(model)
    for prefix in prefixes:
        if not any(f"{row.key}.".startswith(f"{prefix}.") for row in rows):
            raise UsageError(unknown_key(prefix, model))
    if prefixes:
        _print_rows(row for row in rows if any(f"{row.key}.".startswith(f"{prefix}.") for prefix in prefixes))
        return
    console.say(f"usage: {command.usage()}")
    console.say()
    console.say(command.help)
    if PRESET in command.positional:
        standard = f"; {command.preset} where none is given" if command.preset else ""
        console.say(f"PRESET is the path of a YAML file, or one of: {', '.join(preset_names()) or 'none'}{standard}")
    first = [row for key in command.first for row in rows if row.key == key]
    if first:
        _print_heading("First", "what is set most")
        _print_rows(first)
    groups = [row for row in rows if row.is_group and "." not in row.key]
    told = f"the groups {', '.join(row.key for row in groups)} follow" if groups else ""
    _print_heading("Other settings" if first else "Settings", told)
    _print_rows(row for row in rows if "." not in row.key and row not in first and row not in groups)
    for group in groups:
        _print_heading(group.key, group.text)
        _print_rows(row for row in rows if row.key.startswith(f"{group.key}.") and row not in first)


def _print_heading(title: str, text: str) -> None:
    console.say()
    console.say(f"{title}: {text}" if text else title, style="bold underline")


def _print_rows(rows: Iterable[HelpRow]) -> None:
    for row in rows:
        default = "" if not row.default else "  required" if row.default == "required" else f"  default {row.default}"
        of = f"  with {row.only_with}" if row.only_with and not row.only_with.startswith(f"{row.key}=") else ""
        console.say(f"{row.key}  ({row.type}){default}{of}", style="bold")
        if row.text:
            console.say(f"    {row.text}")
