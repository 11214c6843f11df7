"""What a crop store promises: every sample within the envelope equals the sample taken from the original image."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from efafnet.models.settings import InputSize, Settings
from efafnet.models.skeleton import Skeleton
from efafnet.pipelines.crops import augmentation
from efafnet.pipelines.crops.augmentation import AugmentationConfig
from efafnet.pipelines.crops.geometry import Float64

# Bilinear interpolation reads the pixel after the sampled position; one more against rounding.
_MARGIN_PX = 2.0
# So that a declared limit read back from text still covers itself.
_TOLERANCE = 1e-9
# Width / height from 2:3 to 1:1.
_INPUTS = (InputSize(height=384, width=288), InputSize(height=256, width=256), InputSize(height=192, width=128))


@dataclass(frozen=True)
class Demand:
    """What the samples of one person need of its crop."""

    bounds: tuple[float, float, float, float]
    """x1, y1, x2, y2 in image pixels of everything they can show, interpolation included."""
    density: float
    """Image pixels per input pixel at the closest zoom of the largest input: above 1 the image is denser."""


class Envelope(Settings):
    """The widest augmentation and the largest input a store serves. It decides each crop's region and resolution."""

    padding: float = Field(default=1.3, ge=1.0)
    """Largest factor by which the aspect-fixed box grows."""
    scale_factor: float = Field(default=0.35, ge=0.0, lt=1.0)
    """Largest scale factor f: sizes from 1 - f to 1 + f."""
    rotation_deg: float = Field(default=45.0, ge=0.0, le=90.0)
    """Largest `augmentation.rotation_deg` r; samples reach +-2r."""
    shift_factor: float = Field(default=0.0, ge=0.0, le=1.0)
    """Largest shift of the region's centre, as a share of the padded box's width and height."""
    half_body: bool = True
    """Whether half-body samples are served."""
    half_body_padding: float = Field(default=1.5, ge=1.0)
    """Largest padding of half-body samples."""
    half_body_min_joints: int = Field(default=9, ge=1)
    """Fewest annotated joints of a person who gets half-body samples."""
    inputs: tuple[InputSize, ...] = Field(default=_INPUTS, min_length=1)
    """Network inputs served: their aspects and everything between, and every size up to the largest."""

    @model_serializer(mode="wrap")
    def _as_before_shifts(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A store without shifts is described as stores were before there were any, so that its digest stays."""
        tree: dict[str, Any] = plain(self)
        if self.shift_factor == 0:
            del tree["shift_factor"]
        return tree

    @property
    def aspects(self) -> tuple[float, float]:
        """Smallest and largest width / height."""
        aspects = [size.width / size.height for size in self.inputs]
        return min(aspects), max(aspects)

    @property
    def largest_input(self) -> tuple[int, int]:
        """Largest height and largest width of ``inputs``, in pixels."""
        return max(size.height for size in self.inputs), max(size.width for size in self.inputs)

    def check(self, wanted: AugmentationConfig, input_size: InputSize, *, any_reduced: bool, source: str = "") -> None:
        """Raise ValueError, naming each setting and the command that mends it, where ``wanted`` samples leave it.

        ``any_reduced`` says whether some crop is stored below the original resolution: only then can an input be too
        large. ``source`` is the part of the command before the envelope: the store's annotations, images and output.
        """
        problems = [*self._augmentation_problems(wanted), *self._input_problems(input_size, any_reduced)]
        closest = wanted.padding * (1 - wanted.scale_factor)
        if any_reduced and closest < 1 - self.scale_factor - _TOLERANCE:
            problems.append(f"padding * (1 - scale_factor) is {closest:g}, envelope {1 - self.scale_factor:g}")
        if problems:
            command = " ".join(
                ["efafnet prepare", source or "ANNOTATIONS IMAGES OUT", *self._command(wanted, input_size)]
            )
            raise ValueError(
                "the crop store was not prepared for these samples: " + "; ".join(problems) + ". Use smaller settings, "
                f"or prepare a store that serves them: {command}"
            )

    def widened(self, wanted: AugmentationConfig, input_size: InputSize) -> Envelope:
        """The smallest envelope with limits no tighter than these that serves ``wanted`` samples too."""
        half = self.half_body or wanted.half_body_probability > 0
        served = not self._input_problems(input_size, any_reduced=True)
        return Envelope(
            padding=max(self.padding, wanted.padding),
            scale_factor=max(self.scale_factor, wanted.scale_factor),
            rotation_deg=max(self.rotation_deg, _rotation(wanted)),
            shift_factor=max(self.shift_factor, _shift(wanted)),
            half_body=half,
            half_body_padding=max(self.half_body_padding, wanted.half_body_padding if half else 1.0),
            half_body_min_joints=min(self.half_body_min_joints, wanted.half_body_min_joints),
            inputs=self.inputs if served else (*self.inputs, input_size),
        )

    def _command(self, wanted: AugmentationConfig, input_size: InputSize) -> list[str]:
        """The settings to type so that a store serves what this one serves and ``wanted`` samples."""
        needed, default = self.widened(wanted, input_size), Envelope()
        words = []
        for name in Envelope.model_fields:
            value = getattr(needed, name)
            if value == getattr(default, name):
                continue
            if name == "inputs":
                value = "[" + ",".join(str(size) for size in value) + "]"
            words.append(f"envelope.{name}={str(value).lower() if isinstance(value, bool) else value}")
        return words

    def _augmentation_problems(self, wanted: AugmentationConfig) -> list[str]:
        reach, promised = wanted.padding * (1 + wanted.scale_factor), self.padding * (1 + self.scale_factor)
        rotation, shift = _rotation(wanted), _shift(wanted)
        problems = []
        if reach > promised + _TOLERANCE:
            problems.append(f"padding * (1 + scale_factor) is {reach:g}, envelope {promised:g}")
        if rotation > self.rotation_deg + _TOLERANCE:
            problems.append(f"rotation_deg is {rotation:g}, envelope.rotation_deg {self.rotation_deg:g}")
        if shift * wanted.padding > self.shift_factor * self.padding + _TOLERANCE:
            problems.append(
                f"shift_factor * padding is {shift * wanted.padding:g}, envelope {self.shift_factor * self.padding:g}"
            )
        return [*problems, *self._half_body_problems(wanted)]

    def _half_body_problems(self, wanted: AugmentationConfig) -> list[str]:
        if wanted.half_body_probability == 0:
            return []
        if not self.half_body:
            return ["half_body_probability is above 0, envelope.half_body is false"]
        padding, promised = wanted.half_body_padding, self.half_body_padding
        reach, promised_reach = padding * (1 + wanted.scale_factor), promised * (1 + self.scale_factor)
        if reach > promised_reach + _TOLERANCE:
            return [f"half_body_padding * (1 + scale_factor) is {reach:g}, envelope {promised_reach:g}"]
        if _shift(wanted) * padding > self.shift_factor * promised + _TOLERANCE:
            return [
                f"shift_factor * half_body_padding is {_shift(wanted) * padding:g}, envelope "
                f"{self.shift_factor * promised:g}"
            ]
        if wanted.half_body_min_joints < self.half_body_min_joints:
            return [
                f"half_body_min_joints is {wanted.half_body_min_joints}, envelope.half_body_min_joints "
                f"{self.half_body_min_joints}"
            ]
        return []

    def _input_problems(self, input_size: InputSize, any_reduced: bool) -> list[str]:
        aspect, (low, high) = input_size.width / input_size.height, self.aspects
        problems = []
        if not low - _TOLERANCE <= aspect <= high + _TOLERANCE:
            problems.append(
                f"input {input_size} has width / height {aspect:.4g}, envelope.inputs {low:.4g} to {high:.4g}"
            )
        height, width = self.largest_input
        if any_reduced and (input_size.height > height or input_size.width > width):
            problems.append(f"input {input_size} is larger than envelope.inputs ({height}x{width})")
        return problems

    def demand(
        self, skeleton: Skeleton, box_xywh: Float64, joints_px: Float64, visibility: npt.NDArray[np.uint8]
    ) -> Demand:
        """What samples of one person can show, and how closely.

        ``box_xywh`` (4,) and ``joints_px`` (K, 2) are in image pixels, ``visibility`` is (K,).
        """
        regions = self._regions(skeleton, box_xywh, joints_px, visibility)
        reaches = [
            (x, y, *self._half_extents(width * padding / 2, height * padding / 2, across * padding, down * padding))
            for x, y, width, height, padding, across, down in regions
        ]
        bounds = (
            min(x - across for x, _, across, _ in reaches),
            min(y - down for _, y, _, down in reaches),
            max(x + across for x, _, across, _ in reaches),
            max(y + down for _, y, _, down in reaches),
        )
        # Any padding down to 1 may be asked for, and is the closest zoom.
        input_height, input_width = self.largest_input
        density = min(max(width / input_width, height / input_height) for _, _, width, height, *_ in regions)
        return Demand(bounds, density * (1 - self.scale_factor))

    def _regions(
        self, skeleton: Skeleton, box_xywh: Float64, joints_px: Float64, visibility: npt.NDArray[np.uint8]
    ) -> list[tuple[float, float, float, float, float, float, float]]:
        """Centre x, y, width, height and padding of what is shown before shift, scale and rotation, and the width and
        height that shifts are shares of.

        The sides of the widened box are quasi-convex in the aspect, so the extremes cover what lies between.
        """
        x, y, width, height = box_xywh.tolist()
        shown = [(x + width / 2, y + height / 2, width, height, self.padding)]
        if self.half_body:
            points = joints_px.tolist()
            for half in augmentation.halves(visibility.tolist(), skeleton, self.half_body_min_joints).values():
                box = augmentation.half_body_box([points[joint] for joint in half])
                if box is not None:
                    shown.append((*box, self.half_body_padding))
        return [
            (x, y, max(width, aspect * height), max(height, width / aspect), padding, width, height)
            for aspect in self.aspects
            for x, y, width, height, padding in shown
        ]

    def _half_extents(self, half_width: float, half_height: float, width: float, height: float) -> tuple[float, float]:
        """Reach along x and y of a rectangle over all scales and rotations, with what interpolation reads; shifted by
        shares of ``width`` and ``height``.

        Turned by t it reaches a |cos t| + b |sin t|: largest at atan2(b, a), or at the limit before that.
        """
        a, b = half_width * (1 + self.scale_factor), half_height * (1 + self.scale_factor)
        limit = math.radians(2 * self.rotation_deg)
        x_angle, y_angle = min(limit, math.atan2(b, a)), min(limit, math.atan2(a, b))
        return (
            a * math.cos(x_angle) + b * math.sin(x_angle) + self.shift_factor * width + _MARGIN_PX,
            b * math.cos(y_angle) + a * math.sin(y_angle) + self.shift_factor * height + _MARGIN_PX,
        )


def _rotation(wanted: AugmentationConfig) -> float:
    return wanted.rotation_deg if wanted.rotation_probability > 0 else 0.0


def _shift(wanted: AugmentationConfig) -> float:
    return wanted.shift_factor if wanted.shift_probability > 0 else 0.0
