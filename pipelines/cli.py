"""The command line: one table of commands, each a settings model and a function, imported when it is called."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from efafnet.platform import console
from efafnet.platform.interruption import ending_on_signals, told, was_terminated
from efafnet.platform.ray_output import quiet_native

Tree = dict[str, Any]


@dataclass(frozen=True)
class Command:
    """One command: where its settings and its function live, and which fields may be given without their names."""

    name: str
    module: str
    config: str
    run: str
    positional: tuple[str, ...]
    help: str
    config_module: str | None = None
    """Module of the settings, when it is not the function's."""
    preset: str | None = None
    """Preset that the settings start from where none is given."""
    takes_many: bool = False
    """Whether the last of ``positional`` may be given several times."""
    options: tuple[str, ...] = ()
    """Settings that may also be written ``--name VALUE``."""

    def usage(self) -> str:
        """Return the command's usage line."""
        places = " ".join(name.upper() for name in self.positional) + "…" * self.takes_many
        return " ".join(filter(None, ["efafnet", self.name, places, "[key=value …]"]))


_HERE = "efafnet.pipelines"
_PRESET = "preset"
"""The argument that is not a setting: it names a preset, or a YAML file, that the settings start from."""

COMMANDS = (
    Command(
        "synth", f"{_HERE}.synth.dataset", "SynthConfig", "run_synth", ("out",),
        "Draw a synthetic multi-person data set in the COCO layout.",
    ),
    Command(
        "prepare", f"{_HERE}.crops.prepare", "PrepareConfig", "run_prepare", ("annotations", "images", "out"),
        "Turn images and annotations into a crop store.",
    ),
    Command(
        "inspect", f"{_HERE}.inspection", "InspectConfig", "run_inspect", ("store",),
        "Show what a crop store holds and draw some of its persons, or what an exported network is.",
        config_module=f"{_HERE}.crops.config",
    ),
    Command(
        "check", f"{_HERE}.check.check", "CheckConfig", "run_check", (_PRESET,),
        "Check new data before a night is spent: samples drawn, a few persons learned by heart.",
        config_module=f"{_HERE}.check.config",
    ),
    Command(
        "train", f"{_HERE}.training.ray_run", "TrainConfig", "run_train", (_PRESET,),
        "Train a network on crop stores, on one machine or a Ray cluster.",
        config_module=f"{_HERE}.training.config", options=("fork",),
    ),
    Command(
        "evaluate", f"{_HERE}.evaluation.evaluate", "EvaluateConfig", "run_evaluate", ("checkpoint", "data"),
        "Predict with a checkpoint, measure it, and draw its best and worst persons.",
        config_module=f"{_HERE}.evaluation.config",
    ),
    Command(
        "predict", f"{_HERE}.prediction.predict", "PredictConfig", "run_predict", ("checkpoint", "inputs"),
        "Find the joints of the persons in images, folders of images and videos.",
        config_module=f"{_HERE}.prediction.config", takes_many=True, options=("output",),
    ),
    Command(
        "serve", f"{_HERE}.serving.serve", "ServeConfig", "run_serve", ("models",),
        "Answer requests for the joints of persons over HTTP, with a page to try it.",
        config_module=f"{_HERE}.serving.config", takes_many=True,
    ),
    Command(
        "detect", f"{_HERE}.prediction.detect", "DetectConfig", "run_detect", ("source", "out"),
        "Find the persons of a set with torchvision's detector: boxes for prepare and predict, measured.",
        config_module=f"{_HERE}.prediction.config",
    ),
    Command(
        "export", f"{_HERE}.prediction.export", "ExportConfig", "run_export", ("checkpoint", "out"),
        "Write a network for other programs: ONNX or torch.export, checked against PyTorch.",
        config_module=f"{_HERE}.prediction.config",
    ),
    Command(
        "score", f"{_HERE}.evaluation.score", "ScoreConfig", "run_score", ("predictions", "annotations"),
        "Measure a results file against annotations.",
    ),
    Command(
        "tune", f"{_HERE}.study.promotion", "TuneConfig", "run_promoted", ("space", _PRESET),
        "Search settings with Ray Tune and Optuna, and where asked repeat the best with new seeds.",
        config_module=f"{_HERE}.search.config",
    ),
    Command(
        "study", f"{_HERE}.study.study", "StudyConfig", "run_study", ("study", _PRESET),
        "Train the rows of a table with several seeds and compare them, the paper's tables among others.",
        config_module=f"{_HERE}.study.config", preset="study_nano",
    ),
    Command(
        "report", f"{_HERE}.report.report", "ReportConfig", "run_report", (),
        "Compare MLflow runs in one HTML page and a table.",
        config_module=f"{_HERE}.report.config",
    ),
    Command(
        "presets", f"{_HERE}.presets_table", "PresetsConfig", "run_presets", (),
        "List the recipes to start from, each with its network, input, published figure and cost.",
    ),
    Command(
        "models", f"{_HERE}.models_table", "ModelsConfig", "run_models", (),
        "List the networks with their parameters and operations.",
    ),
    Command(
        "doctor", f"{_HERE}.doctor", "DoctorConfig", "run_doctor", (),
        "Say what this machine or cluster has and what is missing.",
    ),
    Command(
        "demo", f"{_HERE}.demo", "DemoConfig", "run_demo", ("out",),
        "Walk the whole road on synthetic people.",
    ),
)  # fmt: skip

_BY_NAME = {command.name: command for command in COMMANDS}


class UsageError(ValueError):
    """The words of a command line do not make a command."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        The exit code: 0 done, 1 it says no (doctor), 2 a user's error, 130 interrupted, 143 terminated.
    """
    console.open_streams()
    with quiet_native(), ending_on_signals():
        return _main(list(sys.argv[1:] if arguments is None else arguments))


def _main(words: list[str]) -> int:
    try:
        return _dispatch(words)
    except KeyboardInterrupt as stop:
        told(stop)
        return 143 if was_terminated(stop) else 130
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
        _print_commands()
        return 0
    if words[0] == "--version":
        console.say(_version())
        return 0
    command = _command(words[0])
    words = [words[0], *_as_settings(command, words[1:])]
    options = {word for word in words[1:] if word.startswith("-") and len(word) > 1}
    rest = [word for word in words[1:] if word not in options]
    unknown = options - {"-h", "--help", "--print-config"}
    if unknown:
        raise UsageError(_corrected(command, min(unknown), words))
    if asked := options & {"-h", "--help"}:
        _print_help(command, [word for word in words[words.index(min(asked)) :] if word not in options])
        return 0
    return _run(command, rest, print_only="--print-config" in options)


def _corrected(command: Command, option: str, words: list[str]) -> str:
    """Say how a setting that was written as an option is written here, whole: ``--lr 1e-3`` is optimizer.lr=1e-3."""
    from efafnet.platform.configuration import ConfigurationError, whole_keys

    key, _, value = option.lstrip("-").partition("=")
    following = [*words[words.index(option) + 1 :], ""][0]
    value = value or ("" if following.startswith("-") or "=" in following else following) or "VALUE"
    fix = f"{key.replace('-', '_')}={value}"
    with contextlib.suppress(ConfigurationError):
        fix = whole_keys([fix], _load_config(command))[0]
    return f"unknown option {option}; settings are written without dashes: {fix}"


def _as_settings(command: Command, words: list[str]) -> list[str]:
    """Write the command's options, ``--output DIR`` and ``--output=DIR``, as settings."""
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


def _command(name: str) -> Command:
    if name in _BY_NAME:
        return _BY_NAME[name]
    import difflib

    close = difflib.get_close_matches(name, _BY_NAME, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise UsageError(f"there is no command {name!r}{hint} Commands: {', '.join(_BY_NAME)}")


def _run(command: Command, words: list[str], *, print_only: bool) -> int:
    from efafnet.platform.configuration import absolute_paths, apply_overrides, resolve, to_yaml, whole_keys

    tree, source, overrides = _base_tree(command, words)
    model = _load_config(command)
    config = absolute_paths(resolve(model, apply_overrides(tree, whole_keys(overrides, model)), source))
    if print_only:
        console.say(to_yaml(config).rstrip())
        return 0
    _warn_of_lost_paths(config)
    outcome = getattr(importlib.import_module(command.module), command.run)(config)
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


def _load_config(command: Command) -> type[Any]:
    module = importlib.import_module(command.config_module or command.module)
    model: type[Any] = getattr(module, command.config)
    return model


def _base_tree(command: Command, words: list[str]) -> tuple[Tree, str, list[str]]:
    """Split a command's words into the tree of its positional arguments (and preset), its source, and overrides."""
    from efafnet.platform.configuration import load_preset, preset_names

    plain, overrides = _split(words)
    if command.name == "tune":
        plain, overrides = _with_ranges(plain, overrides)
    arguments: list[Any] = [*plain]
    last = len(command.positional) - 1
    if command.takes_many and plain[last:]:
        arguments[last:] = [plain[last:]]
    if len(arguments) > len(command.positional):
        extra = arguments[len(command.positional)]
        raise UsageError(f"unexpected argument {extra!r}; usage: {command.usage()}; settings are written key=value")
    named = dict(zip(command.positional, arguments, strict=False))
    given = {override.partition("=")[0] for override in overrides}
    if twice := sorted(set(named) & given):
        raise UsageError(f"{twice[0]} is given twice: {named[twice[0]]!r} and as {twice[0]}=…; give it once")
    preset = named.pop(_PRESET, command.preset)
    if preset is None and _PRESET in command.positional and not overrides:
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
    """Tell arguments from settings: a setting's key is made of names and dots, so ``./a=b`` is an argument."""
    plain: list[str] = []
    overrides: list[str] = []
    for word in words:
        key, separator, _ = word.partition("=")
        is_setting = bool(separator) and all(part.isidentifier() for part in key.split("."))
        (overrides if is_setting else plain).append(word)
    return plain, overrides


def user_message(error: BaseException) -> str | None:
    """Return what to tell the user, or None for an error that is ours and deserves its traceback."""
    cause = _user_error(error, set())
    if cause is None:
        return None
    from pydantic import ValidationError

    if isinstance(cause, ValidationError):
        first = cause.errors()[0]
        return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg'].removeprefix('Value error, ')}"
    if isinstance(cause, ModuleNotFoundError):
        return f"this command needs the package {cause.name!r}; install it: pip install -c constraints.txt -e ."
    return str(cause) or type(cause).__name__


def _user_error(error: BaseException | None, seen: set[int]) -> BaseException | None:
    """Find the user's error inside what Ray wraps around an exception of a worker, innermost first."""
    if error is None or id(error) in seen:
        return None
    seen.add(id(error))
    if _made_by(error, "ray"):
        return next((found for inner in _wrapped(error) if (found := _user_error(inner, seen))), None)
    if isinstance(error, ModuleNotFoundError):
        return error if (error.name or "").partition(".")[0] != "efafnet" else None
    return error if isinstance(error, ValueError | OSError) or _made_by(error, "mlflow") else None


def _made_by(error: BaseException, package: str) -> bool:
    """Tell whether an exception is a package's own (Ray's task error is also an instance of its cause's class)."""
    return any(base.__module__.partition(".")[0] == package for base in type(error).__mro__)


def _wrapped(error: BaseException) -> Iterator[BaseException]:
    """Yield the exceptions an exception of Ray Core, Data, Train or Tune carries."""
    failures = getattr(error, "worker_failures", None)
    if isinstance(failures, dict):
        yield from (failure for failure in failures.values() if isinstance(failure, BaseException))
    for name in ("controller_failure", "cause", "__cause__"):
        inner = getattr(error, name, None)
        if isinstance(inner, BaseException):
            yield inner


def _print_commands() -> None:
    console.say("usage: efafnet COMMAND [ARGUMENT …] [key=value …]")
    console.say()
    width = max(len(command.name) for command in COMMANDS)
    for command in COMMANDS:
        console.say(f"  {command.name:<{width}}  {command.help}")
    console.say()
    console.say("efafnet COMMAND --help explains every setting of a command, --help GROUP those of one group;")
    console.say("--print-config shows the settings a command line stands for. EFAFNET_TRACEBACK=1 shows tracebacks.")


def _print_help(command: Command, prefixes: list[str]) -> None:
    """Print every setting of a command (or those whose keys start with one of ``prefixes``)."""
    from efafnet.platform.configuration import describe, preset_names, unknown_key

    model = _load_config(command)
    rows = describe(model)
    for prefix in prefixes:
        if not any(f"{row.key}.".startswith(f"{prefix}.") for row in rows):
            raise UsageError(unknown_key(prefix, model))
    console.say(f"usage: {command.usage()}")
    console.say()
    console.say(command.help)
    if _PRESET in command.positional:
        standard = f"; {command.preset} where none is given" if command.preset else ""
        console.say(f"PRESET is the path of a YAML file, or one of: {', '.join(preset_names()) or 'none'}{standard}")
    console.say()
    for row in rows:
        if prefixes and not any(f"{row.key}.".startswith(f"{prefix}.") for prefix in prefixes):
            continue
        default = "" if not row.default else "  required" if row.default == "required" else f"  default {row.default}"
        console.say(f"{row.key}  ({row.type}){default}", style="bold")
        if row.text:
            console.say(f"    {row.text}")


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return f"efafnet {version('efafnet')}"
    except PackageNotFoundError:
        return "efafnet, a checkout that is not installed"
