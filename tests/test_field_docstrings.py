"""Docstrings under fields: of classes at every depth, inherited ones, and of none where there is no source."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest

from efafnet.models.settings import Settings
from efafnet.platform.field_docstrings import field_docstrings


class Base(Settings):
    """Not of a field."""

    one: int = 1
    """The first."""
    two: int = 2
    """The second,
    on two lines."""
    three: int = 3


class Derived(Base):
    two: int = 4
    """Another second."""
    four: int = 5

    class Inner(Settings):
        five: int = 5
        """Inside."""


def test_own_and_inherited_ones() -> None:
    assert field_docstrings(Base) == {"one": "The first.", "two": "The second,\n    on two lines."}
    assert field_docstrings(Derived) == {"one": "The first.", "two": "Another second."}


def test_classes_in_classes_and_functions() -> None:
    class Local(Derived.Inner):
        five: int = 6
        six: int = 6
        """Here."""

    assert field_docstrings(Local) == {"five": "Inside.", "six": "Here."}


def test_a_program_that_is_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "typed", ModuleType("typed"))
    typed = {"__module__": "typed", "__annotations__": {"seven": int}, "seven": 7}
    model: type[Settings] = type("Typed", (Settings,), typed)
    assert field_docstrings(model) == {}
