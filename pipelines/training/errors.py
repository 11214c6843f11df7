"""What ends a run for good, as it travels from a worker. Ray's controller of the run hears of it, which computes no
network: so nothing here loads torch.
"""

from __future__ import annotations


class DivergedError(ValueError):
    """The loss stopped being a number, or exploded; every worker raises it at the same step."""

    def __init__(self, message: str, step: int, rows: list[int]) -> None:
        super().__init__(message)
        self.step = step
        """Completed steps up to and including the bad one."""
        self.rows = rows
        """Rows of the training store in that step's global batch."""

    def __reduce__(self) -> tuple[object, ...]:
        """Survive the trip from a Ray worker."""
        return (type(self), (str(self), self.step, self.rows))


class LostRunError(ValueError):
    """A run has checkpoints and none of them is whole; only its owner can say what is to become of it."""
