"""What is wrong with a setting, in one line that names the key, the value, the rule and the remedy."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from efafnet.platform.configuration_help import HelpRow, describe, field_models


def explain(error: ValidationError, model_class: type[BaseModel], source: str = "") -> str:
    """Say in one line what is wrong: the first problem in full, and the number of the others."""
    problems: dict[str, ErrorDetails] = {}
    for detail in error.errors():
        problems.setdefault(_dotted(detail["loc"], model_class), detail)
    key, detail = next(iter(problems.items()))
    prefix = f"{source}: " if source else ""
    more = f" (and {len(problems) - 1} more: {', '.join([*problems][1:4])})" if len(problems) > 1 else ""
    return prefix + _problem(key, detail, model_class) + more


def _problem(key: str, detail: ErrorDetails, model_class: type[BaseModel]) -> str:
    kind = detail["type"]
    rows = describe(model_class)
    known = {row.key: row for row in rows}
    if kind == "extra_forbidden":
        return f"there is no setting {key!r}{nearest_key(key, list(known))}"
    help_text = f" ({known[key].text})" if key in known and known[key].text else ""
    if kind == "missing":
        wanted = f" ({known[key].type})" if key in known else ""
        return f"{key} is required{wanted}: give {key}=…{help_text}"
    value = detail["input"]
    if isinstance(value, dict) and key in known and not known[key].is_group and kind.endswith("_type"):
        return f"{key} is one setting ({known[key].type}) and holds no {', '.join(value)}; give {key}=…{help_text}"
    if not key:
        return rule_of(detail)
    # A rule about several settings together already names them; repeating the whole group would bury the message.
    shown = "" if isinstance(value, dict | BaseModel) else f" = {_short(value)}"
    if kind == "union_tag_invalid":
        return f"{key}.kind = {_short(value.get('kind'))}: takes {' | '.join(_kinds(key, rows))}"
    if key in known and known[key].is_group and kind not in _OWN_WORDS:
        return f"{key}{shown}: {_group_rule(key, value, rows)}"
    if key in known and kind not in (*_OWN_WORDS, *_BOUNDS, "finite_number"):
        return f"{key}{shown}: takes {known[key].type}{_nearest_choice(value, known[key].type)}{help_text}"
    return f"{key}{shown}: {rule_of(detail)}" + ("" if kind in _OWN_WORDS else help_text)


def rule_of(detail: ErrorDetails) -> str:
    """The rule that a value broke, in this program's words: pydantic's name its own classes.

    Args:
        detail: one of a ValidationError's ``errors()``.
    """
    kind, context = detail["type"], detail.get("ctx", {})
    if kind in _OWN_WORDS:
        return detail["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    if kind in _BOUNDS:
        sign, name = _BOUNDS[kind]
        bound = context[name]
        return f"must be {sign}{f'{bound:g}' if isinstance(bound, float) else bound}"
    words = next((words for start, words in _TYPES.items() if kind.startswith(start)), None)
    if words is not None:
        return f"must be {words.format(**context)}"
    return "is missing" if kind == "missing" else "is unknown" if kind == "extra_forbidden" else "has no valid value"


_OWN_WORDS = ("value_error", "assertion_error")
"""Kinds of errors whose sentence was written here."""
_BOUNDS = {
    "greater_than": ("greater than ", "gt"),
    "greater_than_equal": ("at least ", "ge"),
    "less_than": ("less than ", "lt"),
    "less_than_equal": ("at most ", "le"),
    "multiple_of": ("a multiple of ", "multiple_of"),
    "too_short": ("a list with no fewer entries than ", "min_length"),
    "too_long": ("a list with no more entries than ", "max_length"),
    "string_too_short": ("text with no fewer characters than ", "min_length"),
    "string_too_long": ("text with no more characters than ", "max_length"),
    "string_pattern_mismatch": ("text that matches ", "pattern"),
}
"""Kinds of errors whose bound pydantic tells: the words before it, and its name."""
_TYPES = {
    "int": "a whole number",
    "float": "a number",
    "finite": "a finite number",
    "bool": "true or false",
    "string": "text",
    "path": "a path",
    "literal": "{expected}",
    "union_tag_invalid": "of a kind among {expected_tags}",
    "list": "a list",
    "tuple": "a list",
    "dict": "a map of keys to values",
    "model": "a group of settings",
    "dataclass": "a group of values",
    "none": "null",
}
"""What values must be, by the start of the kind of error."""


def _group_rule(key: str, value: object, rows: Sequence[HelpRow]) -> str:
    """Say how a group's settings are written, where one value was given for all of it."""
    if isinstance(value, str) and value in _kinds(key, rows):
        return f"is a group of settings; write {key}.kind={value}"
    if isinstance(value, str) and len(takers := _takers(key, value, rows)) == 1:
        return f"is a group of settings; write {takers[0]}={value}"
    members = list(dict.fromkeys(row.key for row in rows if row.key.rpartition(".")[0] == key))
    if value is None or not isinstance(value, dict):
        return f"is a group of settings; write {members[0]}=…; in it there are: {', '.join(members)}"
    return f"in it there are: {', '.join(members)}"


def _kinds(key: str, rows: Sequence[HelpRow]) -> list[str]:
    """The kinds that a group may be of."""
    return [kind for row in rows if row.key == f"{key}.kind" for kind in row.type.split(" | ")]


def _takers(key: str, value: str, rows: Sequence[HelpRow]) -> list[str]:
    """The settings of a group that have ``value`` among their choices."""
    members = [row for row in rows if row.key.rpartition(".")[0] == key]
    return list(dict.fromkeys(row.key for row in members if value in row.type.split(" | ")))


def _nearest_choice(value: object, kind: str) -> str:
    choices = kind.replace(" or ", " | ").split(" | ")
    close = difflib.get_close_matches(value, choices, n=1) if isinstance(value, str) and len(choices) > 1 else []
    return f"; did you mean {close[0]!r}?" if close else ""


def _dotted(loc: Sequence[int | str], model_class: type[BaseModel]) -> str:
    """Turn pydantic's location into a key: tags of unions and types are dropped, indices of lists end the key."""
    models: tuple[type[BaseModel], ...] = (model_class,)
    tags: set[str] = set()
    parts: list[str] = []
    for index, part in enumerate(loc):
        fields = {name: field for model in models for name, field in model.model_fields.items()}
        if isinstance(part, str) and part in fields:
            parts.append(part)
            models = field_models(fields[part].annotation)
            tags = _tags(fields[part])
        elif index == len(loc) - 1 and isinstance(part, str) and models and "[" not in part and part not in tags:
            parts.append(part)
    return ".".join(parts)


def _tags(field: FieldInfo) -> set[str]:
    """What pydantic may put into a location for the kinds of a group: their classes, or what tells them apart."""
    models = field_models(field.annotation)
    tags = {model.__name__ for model in models}
    if isinstance(field.discriminator, str):
        tags.update(*(get_args(model.model_fields[field.discriminator].annotation) for model in models))
    return tags


def _short(value: object, limit: int = 80) -> str:
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    text = str(value) if isinstance(value, Path) else repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def nearest(word: str, candidates: Sequence[str]) -> str:
    """Say which of the candidates was meant; nothing where none is like it."""
    close = difflib.get_close_matches(word, candidates, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def nearest_key(key: str, known: Sequence[str]) -> str:
    """Suggest the key most like ``key``: spelled alike, or of the same last name in another group."""
    if key in known:
        return f" in the chosen kind of {key.rpartition('.')[0]!r}; it belongs to another kind, choose that one too"
    group, _, leaf = key.rpartition(".")
    siblings = [other for other in known if other.rpartition(".")[0] == group]
    alike = difflib.get_close_matches(leaf, [other.rpartition(".")[2] for other in siblings], n=1, cutoff=0.6)
    same_name = [other for other in known if other.rpartition(".")[2] == leaf]
    anywhere = difflib.get_close_matches(key, known, n=1, cutoff=0.75)
    if alike:
        return f"; did you mean {'.'.join(filter(None, [group, alike[0]]))!r}?"
    if same_name or anywhere:
        return f"; did you mean {[*same_name, *anywhere][0]!r}?"
    where = repr(group) if group else "the top level"
    return f"; in {where} there are: {', '.join(siblings) or 'none'}"


def unknown_key(key: str, model_class: type[BaseModel]) -> str:
    """Say that there is no such setting or group, and which was meant."""
    known = list(dict.fromkeys(row.key for row in describe(model_class)))
    return f"there is no setting or group {key!r}{nearest_key(key, known)}"
