"""The errors inside Ray's, with exceptions made by hand; those of a real Ray: test_cli.py, test_run_faults.py."""

from __future__ import annotations

from efafnet.platform.ray_errors import carried_by, made_by


class WrappedError(Exception):
    """Carries others as Ray Train's do."""


WrappedError.__module__ = "ray.train.errors"


class DerivedError(WrappedError, ValueError):
    """As Ray's task errors: also of the class of what they carry."""


def test_workers_come_by_rank_and_a_chained_error_is_not_carried() -> None:
    first, second, controller = OSError("rank 0"), ValueError("rank 1"), RuntimeError("controller")
    error = WrappedError("failed")
    error.worker_failures = {1: second, 0: first}  # type: ignore[attr-defined]
    error.controller_failure = controller  # type: ignore[attr-defined]
    error.__cause__ = KeyError("raised from")
    assert carried_by(error) == [first, second, controller]
    assert carried_by(ValueError("plain")) == []


def test_an_exception_is_of_the_package_of_any_of_its_classes() -> None:
    assert made_by(WrappedError(), "ray")
    assert made_by(DerivedError(), "ray")
    assert not made_by(ValueError(), "ray")
    assert not made_by(WrappedError(), "ray.train")
