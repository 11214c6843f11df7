"""Keys that neither a space nor a study's row may set, each with the reason: with them runs could not be compared, or
what runs them would be told otherwise by the search itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from efafnet.tune_spaces.space import Entry, SpaceError

_PLACE = "it says where and how runs are kept, not what is trained"
_MACHINE = "every run has the place that is reserved for it; set it for all of them, on the command line"

REFUSED: Mapping[str, str] = {
    "seed": "all settings meet the same seeds; of several seeds the luckiest would win",
    "data": "figures on other data cannot be compared",
    "resample": "all settings meet the same draws of the training data",
    "validation": "how and when runs are measured is the same for all of them",
    "test": "figures of differently tested networks cannot be compared",
    "protocol": "a run has a value for all that it stands for already, so it would change none; set those",
    "max_time_s": "runs need equal budgets",
    "cost": "it changes what is told of a run, not the run",
    "workers": _MACHINE,
    "worker": _MACHINE,
    "cluster": _MACHINE,
    "device": _MACHINE,
    "name": _PLACE,
    "runs": _PLACE,
    "fork": _PLACE,
    "checkpoint": _PLACE,
    "tracking": _PLACE,
}
"""By key; a group stands for all keys in it."""


def refuse(source: str, entries: Iterable[Entry], more: Mapping[str, str] | None = None) -> None:
    """Refuse the first entry whose key must not be set.

    Args:
        source: the file, for messages.
        entries: a space's, those inside options included, or a row's.
        more: further keys and why they are refused.

    Raises:
        SpaceError: names file, line, key and reason.
    """
    for entry in entries:
        for key, reason in {**REFUSED, **(more or {})}.items():
            if entry.key == key or entry.key.startswith(f"{key}."):
                raise SpaceError(f"{source}:{entry.line}: {entry.key} must not be set here: {reason}")
