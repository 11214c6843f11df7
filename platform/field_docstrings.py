"""What the fields of settings are for: the docstrings under them, read from the source when somebody asks."""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Iterator
from functools import cache
from itertools import pairwise

from pydantic import BaseModel


def field_docstrings(model: type[BaseModel]) -> dict[str, str]:
    """The docstring under each field of a model and of those that it inherits from, by the field's name.

    pydantic reads them too (``use_attribute_docstrings``), but when a class is made: for those of a training that takes
    every process a tenth of a second, and only help and error messages need them.
    """
    found: dict[str, str] = {}
    for owner in reversed(model.__mro__):
        if issubclass(owner, BaseModel) and owner is not BaseModel:
            found |= _in_module(owner.__module__).get(owner.__qualname__, {})
    return found


@cache
def _in_module(name: str) -> dict[str, dict[str, str]]:
    """Docstrings of a module's fields by the qualified names of their classes; none where it has no source."""
    try:
        source = inspect.getsource(sys.modules[name])
    except (OSError, TypeError):  # a program given with -c
        return {}
    return dict(_classes(ast.parse(source), ""))


def _classes(node: ast.AST, prefix: str) -> Iterator[tuple[str, dict[str, str]]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef):
            yield f"{prefix}{child.name}", dict(_documented(child.body))
            yield from _classes(child, f"{prefix}{child.name}.")
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _classes(child, f"{prefix}{child.name}.<locals>.")
        else:
            yield from _classes(child, prefix)


def _documented(body: list[ast.stmt]) -> Iterator[tuple[str, str]]:
    for field, text in pairwise(body):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(text, ast.Expr)
            and isinstance(text.value, ast.Constant)
            and isinstance(text.value.value, str)
        ):
            yield field.target.id, text.value.value
