"""What a tree of settings offers: every key with its type, default and explanation, read from the models themselves."""

from __future__ import annotations

import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from efafnet.platform.field_docstrings import field_docstrings

_REQUIRED = "required"


@dataclass(frozen=True)
class HelpRow:
    """One setting, or one group of settings (its keys follow)."""

    key: str
    """Dotted key."""
    type: str
    """What may be given, for people: ``float > 0``, ``mse | ohkm``, ``list of int``."""
    default: str
    """The value when nothing is given, or ``required``."""
    text: str
    """The field's docstring on one line."""
    is_group: bool = False
    """Whether this is a group of settings."""
    only_with: str = ""
    """The kind of its group that has it, as ``network.kind=hrnet``; empty where the group is of one kind."""


_described: dict[type[BaseModel], tuple[HelpRow, ...]] = {}


def describe(model_class: type[BaseModel]) -> tuple[HelpRow, ...]:
    """Return one row for every setting of ``model_class`` in declaration order, groups before their members."""
    if model_class not in _described:
        _described[model_class] = tuple(_rows(model_class, "", None))
    return _described[model_class]


def field_models(annotation: Any) -> tuple[type[BaseModel], ...]:
    """Return the settings models an annotation admits: itself, or those inside unions, lists and ``Annotated``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return (annotation,)
    if get_origin(annotation) is Literal:
        return ()
    found = [model for part in get_args(annotation) for model in field_models(part)]
    return tuple(dict.fromkeys(found))


def _rows(model_class: type[BaseModel], prefix: str, given: BaseModel | None, only_with: str = "") -> Iterator[HelpRow]:
    """Yield the rows of one group; ``given`` is the instance its owner uses as default, whose values win."""
    said = field_docstrings(model_class)
    for name, field in model_class.model_fields.items():
        key = f"{prefix}{name}"
        default = getattr(given, name) if given is not None else default_of(field)
        groups = _nested(field.annotation)
        # A group whose field says nothing is told in its own first sentence.
        of_group = (groups[0].__doc__ or "").partition("\n\n")[0] if len(groups) == 1 else ""
        text = " ".join(said.get(name, of_group).split())
        kind = type_name(field.annotation, field.metadata)
        shown = "" if isinstance(default, BaseModel) else _show(default)
        yield HelpRow(key, kind, shown, text, bool(groups), only_with)
        for group in groups:
            inner = default if isinstance(default, group) else None
            which = f"{key}.kind={_kind_of(group)}" if len(groups) > 1 and "kind" in group.model_fields else only_with
            yield from _rows(group, f"{key}.", inner, which)


def _kind_of(group: type[BaseModel]) -> str:
    """What tells a group of one kind from its other kinds."""
    return " | ".join(map(str, get_args(group.model_fields["kind"].annotation)))


def _nested(annotation: Any) -> tuple[type[BaseModel], ...]:
    """Return the models whose members can be set with dotted keys: not those inside lists."""
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType, Annotated):
        return tuple(dict.fromkeys(model for part in get_args(annotation) for model in _nested(part)))
    return field_models(annotation) if origin is None else ()


def default_of(field: FieldInfo) -> Any:
    """Return a field's default value, or pydantic's marker of a required field."""
    if field.is_required():
        return PydanticUndefined
    return field.get_default(call_default_factory=True, validated_data={})


def _show(value: Any) -> str:
    if value is PydanticUndefined:
        return _REQUIRED
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | list):
        return f"[{', '.join(_show(item) for item in value)}]"
    if isinstance(value, str) and not value:
        return '""'
    return str(value)


def type_name(annotation: Any, metadata: list[Any] | None = None) -> str:
    """Return what a field accepts in a researcher's words."""
    base = _base_name(annotation)
    bounds = [text for item in metadata or [] for text in _bounds(item)]
    return " ".join([base, *bounds[:1], *[f"and {bound}" for bound in bounds[1:]]])


def _base_name(annotation: Any) -> str:
    origin, parts = get_origin(annotation), get_args(annotation)
    if annotation is type(None):
        return "null"
    if origin is Annotated:
        return type_name(parts[0], list(parts[1:]))
    if origin is Literal:
        return " | ".join(_show(part) for part in parts)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_base_name(part) for part in parts))
    if origin in (tuple, list, frozenset, set):
        return _sequence_name(parts)
    if origin is dict:
        return "KEY=VALUE pairs" if parts[1] is Any else f"map of {_base_name(parts[1])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "group"
    if annotation is Path:
        return "path"
    if annotation is str:
        return "text"
    return {bool: "true | false"}.get(annotation, getattr(annotation, "__name__", str(annotation)))


def _sequence_name(parts: tuple[Any, ...]) -> str:
    if not parts:
        return "list"
    if len(parts) == 1 or parts[1] is Ellipsis:
        return f"list of {_base_name(parts[0])}"
    return f"[{', '.join(_base_name(part) for part in parts)}]"


def _bounds(item: Any) -> Iterator[str]:
    for kind, sign, name in (
        (annotated_types.Gt, ">", "gt"),
        (annotated_types.Ge, ">=", "ge"),
        (annotated_types.Lt, "<", "lt"),
        (annotated_types.Le, "<=", "le"),
        (annotated_types.MinLen, "at least", "min_length"),
        (annotated_types.MultipleOf, "multiple of", "multiple_of"),
    ):
        if isinstance(item, kind):
            yield f"{sign} {getattr(item, name):g}"
    if pattern := getattr(item, "pattern", None):
        yield f"that matches {pattern}"
