"""What a task, workers or a controller of Ray failed of: the errors inside Ray's. Ray's exceptions are known by their
fields alone, so that a command that does not use Ray need not import it to tell an error."""

from __future__ import annotations


def made_by(error: BaseException, package: str) -> bool:
    """Whether an exception is of a class of ``package``. Ray's task error also is an instance of its cause's class."""
    return any(base.__module__.partition(".")[0] == package for base in type(error).__mro__)


def carried_by(error: BaseException) -> list[BaseException]:
    """The exceptions that one of Ray Core, Data, Train or Tune carries: of workers by rank, of a controller, its cause.

    What it was merely raised from (``__cause__``) is not among them.
    """
    failures = getattr(error, "worker_failures", None)
    found = [failure for _, failure in sorted(failures.items())] if isinstance(failures, dict) else []
    found += [getattr(error, name, None) for name in ("controller_failure", "health_check_failure", "cause")]
    return [inner for inner in found if isinstance(inner, BaseException)]


def reason_of(error: BaseException) -> str:
    """What went wrong inside what Ray wrapped around it, as one line: ``ValueError: the loss is NaN``."""
    seen: set[int] = set()
    while id(error) not in seen:
        seen.add(id(error))
        error = _inside(error) or error
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:500]}" if text else type(error).__name__


def _inside(error: BaseException) -> BaseException | None:
    """The exception that one of Ray's carries; None for all others, whose own words say more than their causes."""
    if not made_by(error, "ray"):
        return None
    return next(iter(carried_by(error)), error.__cause__)
