"""The contract between the reader and everything that consumes crops."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """N crops at the network's input size, with K joints each. Legend: H W input height and width in pixels."""

    images: Tensor
    """uint8 (N, 3, H, W), RGB; pixels outside the original image are 0."""
    joints_px: Tensor
    """float32 (N, K, 2), x and y in input pixels; meaningful where ``visibility`` > 0."""
    visibility: Tensor
    """uint8 (N, K): 0 not annotated, 1 annotated but hidden, 2 visible."""
    rows: Tensor
    """int64 (N,), row of each crop in its store: the sample's identity."""
    input_to_image: Tensor
    """float64 (N, 2, 3), affine from input pixels to pixels of the original image."""

    @classmethod
    def unlabelled(cls, images: Tensor, rows: Tensor, input_to_image: Tensor, num_joints: int) -> Batch:
        """Crops whose joints nobody has annotated: to predict."""
        n = len(images)
        return cls(
            images=images,
            joints_px=torch.zeros(n, num_joints, 2),
            visibility=torch.zeros(n, num_joints, dtype=torch.uint8),
            rows=rows,
            input_to_image=input_to_image,
        )

    def __len__(self) -> int:
        return int(self.images.shape[0])

    def part(self, first: int, last: int) -> Batch:
        """Crops ``first`` to ``last`` - 1, in the same memory: of a pinned batch a pinned one."""
        return Batch(**{field.name: getattr(self, field.name)[first:last] for field in fields(self)})

    def to(self, device: torch.device) -> Batch:
        """Copy what the network needs to ``device`` (asynchronously from pinned memory); ids and affines stay."""
        return replace(
            self,
            images=self.images.to(device, non_blocking=True),
            joints_px=self.joints_px.to(device, non_blocking=True),
            visibility=self.visibility.to(device, non_blocking=True),
        )
