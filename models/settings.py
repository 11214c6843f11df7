"""The base of every configuration: frozen, closed, every field explained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator

MAX_SEED = 2**32 - 1
"""Largest seed: NumPy takes no larger one, and the numbers derived from it by step and worker fit 64 bits."""


class Settings(BaseModel):
    """Base of all configuration models.

    Frozen and closed: an unknown key is an error, never a silent no-op. The docstring under a field is its help
    text on the command line and names the field's unit.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        validate_default=True,
        allow_inf_nan=False,
    )

    @classmethod
    def filled(cls, tree: Mapping[str, Any]) -> Mapping[str, Any]:
        """What is given, completed by what follows from it; here nothing does.

        For settings that stand for others unless those are given. Called before defaults are filled in.
        """
        return tree


def size_from_text(value: Any, what: str, example: str) -> Any:
    """Height and width of a size written as text, ``HEIGHTxWIDTH``; other values than text and numbers are returned.

    Raises:
        ValueError: the text or number is no size; the message calls it ``what`` and shows ``example``.
    """
    if not isinstance(value, str | int | float):
        return value
    height, separator, width = str(value).partition("x")
    if not (separator and height.isdigit() and width.isdigit()):
        raise ValueError(f"{what} is written HEIGHTxWIDTH, for example {example}; got {value!r}")
    return {"height": int(height), "width": int(width)}


class InputSize(Settings):
    """Size of the network's input in pixels, both sides divisible by 32 (the encoder's total stride).

    Also accepted as a string in the paper's order, height x width: ``256x192``.
    """

    height: int
    """Height of the input crop in pixels; divisible by 32."""
    width: int
    """Width of the input crop in pixels; divisible by 32."""

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        return size_from_text(value, "an input size", "256x192")

    @model_validator(mode="after")
    def _divisible(self) -> InputSize:
        for name, side in (("height", self.height), ("width", self.width)):
            if side <= 0 or side % 32:
                below, above = max(32, side // 32 * 32), max(32, (side // 32 + 1) * 32)
                raise ValueError(f"{name} must be a positive multiple of 32; got {side}, try {below} or {above}")
        return self

    def __str__(self) -> str:
        return f"{self.height}x{self.width}"
