"""What a network sees of the persons of a crop store: warped by Ray Data's tasks, in processes that need no torch."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from efafnet.models.settings import InputSize
from efafnet.pipelines.crops import geometry
from efafnet.pipelines.crops.decode import CropDecoder
from efafnet.pipelines.crops.groups import group_from_table
from efafnet.pipelines.crops.manifest import Encoding

# An exception in a function of Ray Data reaches the driver as a wall of text without its cause, so faults are data.
FAULT = "fault"


@dataclass(frozen=True)
class CropView:
    """How rows of a store become the network's input; pure, so that any worker does it alike."""

    encoding: Encoding
    input_size: InputSize
    padding: float
    udp: bool

    def __call__(self, table: pa.Table) -> pa.Table:
        """Rows of person shards -> their warped crops, ids and affines."""
        cv2.setNumThreads(0)
        group, size, decoder = group_from_table(table), self.input_size, CropDecoder(self.encoding)
        to_image = geometry.view_of_boxes(group.boxes_xywh, size, self.padding, udp=self.udp)
        to_crop = geometry.compose_affine(geometry.invert_affine(group.crop_to_image), to_image)
        pixels = np.empty((table.num_rows, 3, size.height, size.width), np.uint8)
        for i, person in enumerate(table["person_id"].to_pylist()):
            try:
                group.warp(i, decoder, to_crop[i], pixels[i])
            except ValueError as error:
                raise ValueError(f"the crop of person {person} cannot be read: {error}") from error
        return pa.table(
            {
                "person_id": table["person_id"],
                "pixels": _as_fixed_binary(pixels.reshape(len(pixels), -1)),
                "input_to_image": pa.FixedSizeListArray.from_arrays(pa.array(to_image.reshape(-1)), 6),
            }
        )


def _as_fixed_binary(rows: NDArray[np.uint8]) -> pa.Array:
    """Bytes (N, B) as one Arrow value per row, without copying."""
    buffer = pa.py_buffer(np.ascontiguousarray(rows))
    return pa.Array.from_buffers(pa.binary(rows.shape[1]), len(rows), [None, buffer])


def warp(table: pa.Table, view: CropView) -> pa.Table:
    """Ray Data's task: rows of the store -> warped crops, or one row with the fault of a damaged one."""
    try:
        crops = view(table)
    except ValueError as error:
        size = view.input_size
        crops = pa.table(
            {
                "person_id": table["person_id"].slice(0, 1),
                "pixels": pa.nulls(1, pa.binary(3 * size.height * size.width)),
                "input_to_image": pa.nulls(1, pa.list_(pa.float64(), 6)),
            }
        )
        return crops.append_column(FAULT, pa.array([str(error)]))
    return crops.append_column(FAULT, pa.nulls(crops.num_rows, pa.string()))
