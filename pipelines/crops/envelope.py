"""What a crop store promises: every sample within the envelope equals the sample taken from the original image."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from pydantic import Field

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

    padding: float = Field(default=1.25, ge=1.0)
    """Largest factor by which the aspect-fixed box grows."""
    scale_factor: float = Field(default=0.3, ge=0.0, lt=1.0)
    """Largest scale factor f: sizes from 1 - f to 1 + f."""
    rotation_deg: float = Field(default=40.0, ge=0.0, le=90.0)
    """Largest standard deviation r of the rotation in degrees; samples reach +-2r."""
    half_body: bool = True
    """Whether half-body samples are served."""
    half_body_padding: float = Field(default=1.5, ge=1.0)
    """Largest padding of half-body samples."""
    half_body_min_joints: int = Field(default=9, ge=1)
    """Fewest annotated joints of a person who gets half-body samples."""
    inputs: tuple[InputSize, ...] = Field(default=_INPUTS, min_length=1)
    """Network inputs served: their aspects and everything between, and every size up to the largest."""

    @property
    def aspects(self) -> tuple[float, float]:
        """Smallest and largest width / height."""
        aspects = [size.width / size.height for size in self.inputs]
        return min(aspects), max(aspects)

    @property
    def largest_input(self) -> tuple[int, int]:
        """Largest height and largest width of ``inputs``, in pixels."""
        return max(size.height for size in self.inputs), max(size.width for size in self.inputs)

    def check(self, wanted: AugmentationConfig, input_size: InputSize, *, any_reduced: bool) -> None:
        """Raise ValueError, naming each setting and its remedy, where ``wanted`` samples leave the envelope.

        ``any_reduced`` says whether some crop is stored below the original resolution: only then can an input be too
        large.
        """
        problems = [*self._augmentation_problems(wanted), *self._input_problems(input_size, any_reduced)]
        closest = wanted.padding * (1 - wanted.scale_factor)
        if any_reduced and closest < 1 - self.scale_factor - _TOLERANCE:
            problems.append(f"padding * (1 - scale_factor) is {closest:g}, envelope {1 - self.scale_factor:g}")
        if problems:
            raise ValueError(
                "the crop store was not prepared for these samples: " + "; ".join(problems) + ". Use smaller settings, "
                "or prepare the store again with the larger envelope"
            )

    def _augmentation_problems(self, wanted: AugmentationConfig) -> list[str]:
        reach, promised = wanted.padding * (1 + wanted.scale_factor), self.padding * (1 + self.scale_factor)
        rotation = wanted.rotation_deg if wanted.rotation_probability > 0 else 0.0
        half_reach = wanted.half_body_padding * (1 + wanted.scale_factor)
        problems = []
        if reach > promised + _TOLERANCE:
            problems.append(f"padding * (1 + scale_factor) is {reach:g}, envelope {promised:g}")
        if rotation > self.rotation_deg + _TOLERANCE:
            problems.append(f"rotation_deg is {rotation:g}, envelope.rotation_deg {self.rotation_deg:g}")
        if wanted.half_body_probability > 0:
            if not self.half_body:
                problems.append("half_body_probability is above 0, envelope.half_body is false")
            elif half_reach > self.half_body_padding * (1 + self.scale_factor) + _TOLERANCE:
                problems.append(
                    f"half_body_padding is {wanted.half_body_padding:g}, envelope.half_body_padding "
                    f"{self.half_body_padding:g}"
                )
            elif wanted.half_body_min_joints < self.half_body_min_joints:
                problems.append(
                    f"half_body_min_joints is {wanted.half_body_min_joints}, envelope.half_body_min_joints "
                    f"{self.half_body_min_joints}"
                )
        return problems

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
            (x, y, *self._half_extents(width * padding / 2, height * padding / 2))
            for x, y, width, height, padding in regions
        ]
        bounds = (
            min(x - across for x, _, across, _ in reaches),
            min(y - down for _, y, _, down in reaches),
            max(x + across for x, _, across, _ in reaches),
            max(y + down for _, y, _, down in reaches),
        )
        # Any padding down to 1 may be asked for, and is the closest zoom.
        input_height, input_width = self.largest_input
        density = min(max(width / input_width, height / input_height) for _, _, width, height, _ in regions)
        return Demand(bounds, density * (1 - self.scale_factor))

    def _regions(
        self, skeleton: Skeleton, box_xywh: Float64, joints_px: Float64, visibility: npt.NDArray[np.uint8]
    ) -> list[tuple[float, float, float, float, float]]:
        """Centre x, y, width, height and padding of what is shown before scale and rotation.

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
            (x, y, max(width, aspect * height), max(height, width / aspect), padding)
            for aspect in self.aspects
            for x, y, width, height, padding in shown
        ]

    def _half_extents(self, half_width: float, half_height: float) -> tuple[float, float]:
        """Reach along x and y of a rectangle over all scales and rotations, with what interpolation reads.

        Turned by t it reaches a |cos t| + b |sin t|: largest at atan2(b, a), or at the limit before that.
        """
        a, b = half_width * (1 + self.scale_factor), half_height * (1 + self.scale_factor)
        limit = math.radians(2 * self.rotation_deg)
        x_angle, y_angle = min(limit, math.atan2(b, a)), min(limit, math.atan2(a, b))
        return (
            a * math.cos(x_angle) + b * math.sin(x_angle) + _MARGIN_PX,
            b * math.cos(y_angle) + a * math.sin(y_angle) + _MARGIN_PX,
        )
