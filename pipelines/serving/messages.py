"""What is asked and answered: the schemas of the HTTP interface, and what travels between its processes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict

Box = tuple[float, float, float, float]
"""Left, top, width, height in image pixels."""
BoxesFrom = Literal["request", "detector", "whole_image"]
"""Where a request's boxes come from; whole_image: one person fills it."""


@dataclass(frozen=True)
class PoseRequest:
    """One request, checked as far as is possible without decoding the image."""

    image: bytes
    model: str
    boxes: tuple[Box, ...] | None
    """Boxes in pixels of the upright image; None where persons are to be found."""
    with_heatmaps: bool = False


@dataclass(frozen=True)
class Refusal:
    """A request that cannot be answered, as a value: an exception would cross processes as a wall of text."""

    status: int
    """HTTP status."""
    reason: str


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


class Keypoint(_Message):
    """One joint of a person."""

    joint: str
    x: float
    """Pixels of the upright image, to the right; the centre of the first pixel is 0."""
    y: float
    """Pixels of the upright image, down."""
    score: float
    """Height of the heatmap's peak, about 0 to 1; at 0 or less the joint was not found."""
    visible: float | None = None
    """Probability that the joint is visible; null where the network's checkpoint holds no calibration."""


class Heatmaps(_Message):
    """Where the network looks for each joint of a person."""

    png_base64: str
    """Grey PNG: the heatmaps of all joints below each other, 0 to 255 for 0 to 1."""
    width: int
    """Width of one heatmap, pixels."""
    height: int
    """Height of one heatmap, pixels."""
    to_image: tuple[tuple[float, float, float], tuple[float, float, float]]
    """Affine from pixels of a heatmap to pixels of the image."""


class Person(_Message):
    """A person with its joints."""

    box_xywh: Box
    """Left, top, width, height in pixels of the upright image."""
    box_score: float
    """The detector's confidence; 1 for boxes that were given."""
    score: float
    """Box score times the mean of the sure joints' scores, as in COCO results."""
    keypoints: list[Keypoint]
    heatmaps: Heatmaps | None = None


class Persons(_Message):
    """The persons of one image, in the order of their boxes."""

    model: str
    skeleton: str
    width: int
    """Width of the upright image, pixels."""
    height: int
    """Height of the upright image, pixels."""
    boxes_from: BoxesFrom
    persons: list[Person]


@dataclass(frozen=True)
class Answer:
    """The persons of one image as the JSON that is sent, written where they were found.

    The processes between would only read it in order to write it again.
    """

    json: str
    persons: int
    """How many."""

    @classmethod
    def of(cls, found: Persons) -> Answer:
        """Write it."""
        return cls(found.model_dump_json(exclude_none=True), len(found.persons))


class Model(_Message):
    """A network that answers."""

    name: str
    """What ``model=`` takes."""
    skeleton: str
    joints: list[str]
    limbs: list[tuple[int, int]]
    flip_pairs: list[tuple[int, int]]
    input: str
    """Height x width of the network's input, pixels."""
    network: str
    parameters: int
    step: int | None
    """Optimizer steps it was trained for."""


class Models(_Message):
    """All that answer; the first is the default."""

    models: list[Model]
    finds_persons: bool
    """Whether a detector looks for persons where a request gives no boxes."""


class Problem(_Message):
    """Why a request was refused."""

    error: str
    """One line: what is wrong, and what would be right."""
