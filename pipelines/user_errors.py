"""Which errors are the user's, and how they are told in one line."""

from __future__ import annotations

from efafnet.platform.ray_errors import carried_by, made_by


class UsageError(ValueError):
    """The words of a command line do not make a command."""


def user_message(error: BaseException) -> str | None:
    """Return what to tell the user, or None for an error that is ours and deserves its traceback."""
    cause = _user_error(error, set())
    if cause is None:
        return None
    from pydantic import ValidationError

    if isinstance(cause, ValidationError):
        from efafnet.platform.configuration_errors import rule_of

        first = cause.errors()[0]
        return ": ".join(filter(None, [".".join(str(part) for part in first["loc"]), rule_of(first)]))
    if isinstance(cause, ModuleNotFoundError):
        return f"this command needs the package {cause.name!r}; install it: pip install -c constraints.txt -e ."
    if isinstance(cause, OSError) and cause.strerror:  # the system's own, which begin with its number
        return ": ".join([*(str(name) for name in (cause.filename, cause.filename2) if name), cause.strerror])
    return str(cause) or type(cause).__name__


def _user_error(error: BaseException | None, seen: set[int]) -> BaseException | None:
    """Find the user's error inside what Ray wraps around an exception of a worker, innermost first."""
    if error is None or id(error) in seen:
        return None
    seen.add(id(error))
    if made_by(error, "ray"):
        inside = [*carried_by(error), error.__cause__]
        return next((found for inner in inside if (found := _user_error(inner, seen))), None)
    if isinstance(error, ModuleNotFoundError):
        return error if (error.name or "").partition(".")[0] != "efafnet" else None
    return error if isinstance(error, ValueError | OSError) or made_by(error, "mlflow") else None
