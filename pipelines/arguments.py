"""From the words of a command line to settings: which of them is an argument, a setting or a preset, or wrong."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from efafnet.pipelines.commands import PRESET, Command
from efafnet.pipelines.user_errors import UsageError

Tree = dict[str, Any]


def base_tree(command: Command, words: list[str]) -> tuple[Tree, str, list[str]]:
    """Split a command's words into the tree of its positional arguments (and preset), its source, and overrides."""
    from efafnet.platform.configuration import load_preset, preset_names

    plain, overrides = _split(words)
    if command.name == "tune":
        plain, overrides = _with_ranges(plain, overrides)
    arguments: list[Any] = [*plain]
    last = len(command.positional) - 1
    if command.takes_many and plain[last:]:
        arguments[last:] = [plain[last:]]
    _check_order(command, plain)
    if len(arguments) > len(command.positional):
        extra = arguments[len(command.positional)]
        raise UsageError(f"unexpected argument {extra!r}; usage: {command.usage()}; settings are written key=value")
    named = dict(zip(command.positional, arguments, strict=False))
    given = {override.partition("=")[0] for override in overrides}
    if twice := sorted(set(named) & given):
        raise UsageError(f"{twice[0]} is given twice: {named[twice[0]]!r} and as {twice[0]}=…; give it once")
    preset = named.pop(PRESET, command.preset)
    if preset is None and PRESET in command.positional and not overrides:
        raise UsageError(
            f"PRESET is missing: {command.usage()}; for example synth_nano, and `efafnet presets` lists all"
        )
    if preset is None:
        return dict(named), "", overrides
    tree = load_preset(preset)
    if command.name != "train" and preset in preset_names():
        # The project's presets name trainings; a search or a study that starts from one must not be taken for it.
        tree.pop("name", None)
    return {**tree, **named}, f"{command.name} {preset}", overrides


def _with_ranges(plain: list[str], overrides: list[str]) -> tuple[list[str], list[str]]:
    """Put ranges such as ``optimizer.lr=log(1e-4, 1e-2)`` in the place of the space."""
    from efafnet.tune_spaces.inline import is_range

    ranges = [word for word in overrides if is_range(word)]
    space = ["\n".join(ranges)] if ranges else []
    return [*space, *plain], [word for word in overrides if word not in ranges]


def _split(words: list[str]) -> tuple[list[str], list[str]]:
    """Tell arguments from settings: a setting's key is made of names and dots, so ``./a=b`` is an argument.

    Raises:
        UsageError: a setting whose name is written with hyphens.
    """
    plain: list[str] = []
    overrides: list[str] = []
    for word in words:
        key, separator, _ = word.partition("=")
        is_setting = bool(separator) and _is_key(key)
        if separator and not is_setting and _is_key(key.replace("-", "_")) and not Path(word).exists():
            meant = word.replace(key, key.replace("-", "_"), 1)
            raise UsageError(f"{word}: settings are written with underscores: {meant}")
        (overrides if is_setting else plain).append(word)
    return plain, overrides


def _is_key(text: str) -> bool:
    return all(part.isidentifier() for part in text.split("."))


_FORMER = {"engine=process": "workers=0", "workers.distributed=false": "workers=0"}
"""Settings of earlier versions by what they are called now, for scripts that were written then."""


def as_settings(command: Command, words: list[str]) -> list[str]:
    """Write the command's options, ``--output DIR`` and ``--output=DIR``, as settings, and those of earlier versions.

    Raises:
        UsageError: an option without its value.
    """
    words = [_FORMER.get(word, word) for word in words]
    written: list[str] = []
    following = iter(words)
    for word in following:
        name, separator, value = word.removeprefix("--").partition("=")
        if not (word.startswith("--") and name in command.options):
            written.append(word)
        elif (given := value if separator else next(following, None)) is not None:
            written.append(f"{name}={given}")
        else:
            raise UsageError(f"{word} needs a value: {word} {name.upper()}, or {name}={name.upper()}")
    return written


def corrected(command: Command, option: str, words: list[str]) -> str:
    """Say how what was written as an unknown option is written here: ``--lr 1e-3`` is optimizer.lr=1e-3."""
    from efafnet.platform.configuration import ConfigurationError, whole_keys

    key, _, value = option.lstrip("-").partition("=")
    following = [*words[words.index(option) + 1 :], ""][0]
    value = value or ("" if following.startswith("-") or "=" in following else following) or "VALUE"
    whole = [name for name in command.options if len(key) == 1 and name.startswith(key)]
    if whole:
        return f"unknown option {option}; did you mean --{whole[0]} {value}"
    if key == PRESET and key in command.positional:
        return f"unknown option {option}; the preset is an argument without a name: {command.usage()}"
    fix = f"{key.replace('-', '_')}={value}"
    with contextlib.suppress(ConfigurationError):
        fix = whole_keys([fix], command.settings())[0]
    return f"unknown option {option}; settings are written without dashes: {fix}"


def check_given(command: Command, tree: Tree) -> None:
    """Raise UsageError for an argument that is neither given nor has a default; it shows how the command is written."""
    from efafnet.platform.configuration import describe

    rows = {row.key: row for row in describe(command.settings())}
    for name in command.positional:
        if name in rows and rows[name].default == "required" and name not in tree:
            raise UsageError(f"{name.upper()} is missing: {command.usage()}; {name}: {rows[name].text}")


# ---- arguments in another order


def _check_order(command: Command, words: Sequence[str]) -> None:
    """Refuse arguments that stand where others belong, and say how they are meant.

    Only where what they are is plain to see: a preset's name, a file or a directory of a kind.

    Raises:
        UsageError: such arguments; it names the right order.
    """
    wanted = command.positional
    if wanted == (PRESET,):
        stores = [word for word in words if _is_store(word)]
        if stores:
            presets = [word for word in words if word not in stores] or ["PRESET"]
            data = [f"{key}={store}" for key, store in zip(("data.train", "data.val"), stores, strict=False)]
            raise UsageError(f"{stores[0]} is a crop store: efafnet {' '.join([command.name, presets[0], *data])}")
    elif command.takes_many:
        fits = _LOOKS.get(wanted[0])
        meant = [word for word in words if fits is not None and fits(word)]
        if len(meant) == 1 and meant[0] != words[0]:
            raise _disordered(command, [meant[0], *(word for word in words if word != meant[0])])
    elif len(words) >= 2 and _are_swapped(wanted[:2], words[:2]):
        raise _disordered(command, [words[1], words[0], *words[2:]])


def _are_swapped(names: Sequence[str], words: Sequence[str]) -> bool:
    """Whether neither of two words is what its place wants, and the other place has room for it.

    Where both places tell what they want, one word that is what the other place wants is enough: the other word may
    name what is not there.
    """
    looks = [_LOOKS.get(name) for name in names]
    own = [look(word) for look, word in zip(looks, words, strict=True) if look is not None]
    others = [look(word) for look, word in zip(looks, reversed(words), strict=True) if look is not None]
    return bool(own) and not any(own) and (any(others) if len(others) == 2 else all(others))


def _disordered(command: Command, meant: Sequence[str]) -> UsageError:
    told = " ".join(["efafnet", command.name, *meant])
    return UsageError(f"the arguments stand in another order: {command.usage()}; did you mean: {told}")


def _is_store(word: str) -> bool:
    return (Path(word) / "manifest.json").is_file()


def _is_trained(word: str) -> bool:
    return any((Path(word) / name).exists() for name in ("run.json", "meta.json"))


def _is_preset(word: str) -> bool:
    from efafnet.platform.configuration import preset_names

    return word in preset_names()


_LOOKS: dict[str, Callable[[str], bool]] = {
    PRESET: _is_preset,
    "checkpoint": _is_trained,
    "data": _is_store,
    "annotations": lambda word: Path(word).is_file(),
    "predictions": lambda word: Path(word).is_file(),
    "images": lambda word: Path(word).is_dir(),
}
"""What arguments of these names look like."""
