"""Why runs failed, in one line each, and when failures say that the rest of a set would fail too."""

from __future__ import annotations

import re
from collections import Counter

SAME_REASON = 3
"""Runs that fail alike, while none has shown a figure, after which no more are begun."""


class AlikeFailures:
    """Tells failures caused by the machine or the command from those of single runs.

    Only what failed in this process counts, so that the same command tries again once the cause is mended.
    """

    def __init__(self) -> None:
        self._alike: Counter[str] = Counter()
        self._last = ""

    def add(self, reason: str) -> None:
        """Count a failure. A training that diverged says something about its settings, and others may do better."""
        if reason.startswith("DivergedError"):
            return
        # Without the digits: paths, ports and numbers of runs differ where the cause is one.
        self._alike[kind := re.sub(r"\d+", "#", reason)] += 1
        self._last = reason if self._alike[kind] >= SAME_REASON else self._last

    @property
    def repeated(self) -> str:
        """The last reason that was given ``SAME_REASON`` times; nothing while there is none."""
        return self._last
