"""From presets and dotted overrides to one checked, frozen tree of settings: reading, resolving, naming, writing."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from efafnet.models.settings import Settings
from efafnet.platform.configuration_errors import explain, nearest, unknown_key
from efafnet.platform.configuration_help import default_of, describe, field_models
from efafnet.platform.storage import sha256_json
from efafnet.platform.yaml_text import dump_yaml, load_yaml, problem_of, read_yaml_file

__all__ = [
    "ConfigurationError",
    "absolute_paths",
    "apply_overrides",
    "describe",
    "digest",
    "flatten",
    "load_preset",
    "parse_value",
    "paths_of",
    "preset_names",
    "read_tree",
    "resolve",
    "split_override",
    "to_yaml",
    "unknown_key",
    "whole_keys",
]

SettingsT = TypeVar("SettingsT", bound=Settings)
Tree = dict[str, Any]

PRESETS = "efafnet.pipelines.presets"
_KEY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


class ConfigurationError(ValueError):
    """A setting the user can mend: the message names the key, the value and the remedy."""


def parse_value(text: str, key: str = "value") -> Any:
    """Parse one override's value as YAML: ``1e-3``, ``true``, ``null``, ``[170, 200]``, ``{kind: cosine}``, text.

    Raises:
        ConfigurationError: the text is not YAML.
    """
    try:
        return load_yaml(text)
    except yaml.YAMLError as error:
        reason = problem_of(error)
        raise ConfigurationError(
            f"{key}={text}: not a readable value ({reason}); quote text that holds brackets, colons or commas"
        ) from error


def read_tree(text: str, source: str) -> Tree:
    """Parse a YAML document that must be a mapping.

    Raises:
        ConfigurationError: it is not YAML or not a mapping; the message names ``source`` and the line.
    """
    try:
        tree = load_yaml(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{source}, line {mark.line + 1}" if mark else source
        raise ConfigurationError(f"{where}: not readable YAML ({problem_of(error)})") from error
    if tree is None:
        return {}
    if not isinstance(tree, dict) or not all(isinstance(key, str) for key in tree):
        raise ConfigurationError(f"{source}: expected `key: value` lines, got {type(tree).__name__}")
    return tree


# ---- presets


def preset_names() -> list[str]:
    """Return the names of the presets, sorted."""
    entries = resources.files(PRESETS).iterdir()
    return sorted(entry.name.removesuffix(".yaml") for entry in entries if entry.name.endswith(".yaml"))


def load_preset(name_or_path: str) -> Tree:
    """Return the tree of a named preset, or of a YAML file (anything with a slash or ending in .yaml).

    Raises:
        ConfigurationError: no such preset or file, or it is not YAML; names the nearest preset.
    """
    if name_or_path.endswith((".yaml", ".yml")) or "/" in name_or_path:
        path = Path(name_or_path).expanduser()
        try:
            text = read_yaml_file(path)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ConfigurationError(f"preset file {name_or_path} cannot be read: {reason}") from error
        return read_tree(text, str(path))
    names = preset_names()
    if name_or_path not in names:
        raise ConfigurationError(
            f"there is no preset {name_or_path!r}{nearest(name_or_path, names)}; "
            f"presets: {', '.join(names) or 'none'}; a file is named by its path, for example ./{name_or_path}.yaml"
        )
    text = (resources.files(PRESETS) / f"{name_or_path}.yaml").read_text(encoding="utf-8")
    return read_tree(text, f"preset {name_or_path}")


# ---- overrides


def split_override(text: str) -> tuple[str, str]:
    """Split ``a.b=1`` into its key and its text.

    Raises:
        ConfigurationError: it is not of that form.
    """
    key, separator, value = text.partition("=")
    if not separator or not _KEY.fullmatch(key):
        raise ConfigurationError(f"{text!r} is not a setting; settings are written key=value, for example seed=1")
    return key, value


def apply_overrides(tree: Mapping[str, Any], overrides: Iterable[str]) -> Tree:
    """Return ``tree`` with ``a.b=value`` overrides applied in order; the input is left as it is.

    A sub-tree that is absent or null is created; a list or a mapping as value replaces what was there whole.

    Raises:
        ConfigurationError: an override is malformed, or reaches inside something that is not a group of settings.
    """
    result: Tree = copy.deepcopy(dict(tree))
    for override in overrides:
        key, text = split_override(override)
        *groups, leaf = key.split(".")
        node = result
        for depth, group in enumerate(groups):
            if node.get(group) is None:
                node[group] = {}
            inner = node[group]
            if not isinstance(inner, dict):
                outer = ".".join(groups[: depth + 1])
                raise ConfigurationError(
                    f"{override}: {outer} is set to {inner!r}, which has no {'.'.join([*groups[depth + 1 :], leaf])!r} "
                    f"inside; set {outer}=… as a whole"
                )
            node = inner
        node[leaf] = parse_value(text, key)
    return result


def whole_keys(overrides: Iterable[str], model_class: type[BaseModel]) -> list[str]:
    """Return overrides with keys that are given by their last part alone written out: ``lr=1`` as ``optimizer.lr=1``.

    Keys that are there as they are, and those that are nowhere, stay.

    Raises:
        ConfigurationError: several settings end so; it names them.
    """
    known = dict.fromkeys(row.key for row in describe(model_class))
    written = []
    for override in overrides:
        key, text = split_override(override)
        found = [other for other in known if other.endswith(f".{key}")]
        if key not in known and len(found) > 1:
            raise ConfigurationError(f"{override}: {key} could be {', '.join(found[:6])}; write one of them")
        written.append(f"{found[0]}={text}" if key not in known and found else override)
    return written


# ---- resolving


def resolve(model_class: type[SettingsT], tree: Mapping[str, Any], source: str = "") -> SettingsT:
    """Check ``tree`` against ``model_class`` and return the frozen settings.

    Raises:
        ConfigurationError: the first thing wrong (``[source: ]key = value: rule; remedy``) and how many more there are.
    """
    try:
        return model_class.model_validate(_complete(tree, model_class, None))
    except ValidationError as error:
        raise ConfigurationError(explain(error, model_class, source)) from error


def _complete(tree: Mapping[str, Any], model: type[BaseModel], given: BaseModel | None) -> Tree:
    """Fill a partly given group from the default its OWNER declares, which may differ from the group's own defaults.

    Without this, ``loss.hard_joints=9`` under an owner with ``loss: LossConfig = LossConfig(kind="ohkm")`` would
    silently fall back to the kind LossConfig has by itself.
    """
    tree = model.filled(tree) if issubclass(model, Settings) else tree
    result: Tree = dict(tree)
    for name, field in model.model_fields.items():
        default = getattr(given, name) if given is not None else default_of(field)
        value = tree.get(name)
        if name not in tree:
            if given is not None:
                result[name] = default
        elif isinstance(value, Mapping):
            if isinstance(default, BaseModel) and _same_kind(value, default, field):
                result[name] = _complete(value, type(default), default)
            elif len(candidates := field_models(field.annotation)) == 1 and not isinstance(default, Mapping):
                result[name] = _complete(value, candidates[0], None)
    return result


def _same_kind(value: Mapping[str, Any], default: BaseModel, field: FieldInfo) -> bool:
    """Tell whether a partly given group is the alternative its default is (always, unless the field is a union)."""
    if isinstance(field.discriminator, str):
        kind = getattr(default, field.discriminator)
        return bool(value.get(field.discriminator, kind) == kind)
    return len(field_models(field.annotation)) == 1 or set(value) <= set(type(default).model_fields)


# ---- paths, names, text


def absolute_paths(settings: SettingsT, base: Path | None = None) -> SettingsT:
    """Return ``settings`` with every path absolute, relative ones against ``base`` (default: the current directory).

    Ray's workers run in other directories, so a relative path must be resolved where the user wrote it.

    Raises:
        ConfigurationError: an address such as ``s3://…`` was given where only a local path works.
    """
    return _absolute(settings, (base or Path.cwd()).absolute(), "")  # type: ignore[no-any-return]


def _absolute(value: Any, base: Path, key: str) -> Any:
    if isinstance(value, Path):
        if re.match(r"[a-z][a-z0-9+]+:", value.parts[0] if value.parts else ""):
            raise ConfigurationError(f"{key} = {value}: must be a path on a file system this machine has mounted")
        return base / value.expanduser()
    if isinstance(value, BaseModel):
        named = {name: getattr(value, name) for name in type(value).model_fields}
        changed = {name: _absolute(item, base, f"{key}.{name}".lstrip(".")) for name, item in named.items()}
        return value.model_copy(update={name: item for name, item in changed.items() if item is not named[name]})
    if isinstance(value, tuple | list):
        return type(value)(_absolute(item, base, key) for item in value)
    if isinstance(value, dict):
        return {name: _absolute(item, base, f"{key}.{name}") for name, item in value.items()}
    return value


def paths_of(settings: BaseModel) -> dict[str, Path]:
    """Return every path in ``settings`` under its dotted key."""
    found: dict[str, Path] = {}
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if isinstance(value, Path):
            found[name] = value
        elif isinstance(value, BaseModel):
            found |= {f"{name}.{key}": path for key, path in paths_of(value).items()}
    return found


def digest(settings: BaseModel, exclude: Iterable[str] = ()) -> str:
    """Return 16 hexadecimal digits that identify the values of ``settings``, whatever the order of their fields.

    Args:
        settings: what to name.
        exclude: dotted keys that do not belong to the identity (for example where outputs go).
    """
    tree = settings.model_dump(mode="json")
    for key in exclude:
        *groups, leaf = key.split(".")
        node: Any = tree
        for group in groups:
            node = node.get(group) if isinstance(node, dict) else None
        assert isinstance(node, dict), f"no group of settings around {key!r}"
        del node[leaf]
    return sha256_json(tree)[:16]


def to_yaml(settings: BaseModel | Mapping[str, Any]) -> str:
    """Return the settings as YAML that ``load_preset`` reads back to equal settings."""
    tree = settings.model_dump(mode="json") if isinstance(settings, BaseModel) else dict(settings)
    return dump_yaml(tree)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Tree:
    """Nested groups as one level of dotted keys; an empty group stays, as ``{}``."""
    flat: Tree = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
