"""Columns of the crop store's tables. Coordinates are in pixels of the original image.

Plain Arrow types (numbers, binary, fixed-size lists), so that any Parquet reader reads them.
"""

from __future__ import annotations

import pyarrow as pa


def person_schema(num_joints: int) -> pa.Schema:
    """Columns of ``persons-*.parquet`` for K = ``num_joints``. The row's place in the store is its identity."""
    return pa.schema(
        [
            pa.field("image", pa.binary(), nullable=False),  # the crop as the manifest's encoding says
            pa.field("crop_width", pa.int32(), nullable=False),
            pa.field("crop_height", pa.int32(), nullable=False),
            pa.field("crop_to_image", pa.list_(pa.float64(), 6), nullable=False),  # rows of the 2x3 affine
            pa.field("joints_px", pa.list_(pa.float64(), 2 * num_joints), nullable=False),  # x0, y0, x1, y1, ...
            pa.field("visibility", pa.list_(pa.uint8(), num_joints), nullable=False),  # 0 absent, 1 hidden, 2 visible
            pa.field("box_xywh", pa.list_(pa.float64(), 4), nullable=False),  # after the manifest's box rule
            pa.field("area", pa.float64(), nullable=False),
            pa.field("box_score", pa.float64(), nullable=False),  # 1 for annotated boxes
            pa.field("person_id", pa.int64(), nullable=False),  # annotation id, or the detection's place in its file
            pa.field("image_id", pa.int64(), nullable=False),
            pa.field("data_set", pa.string(), nullable=False),
            pa.field("file_name", pa.string(), nullable=False),
            pa.field("image_width", pa.int32(), nullable=False),
            pa.field("image_height", pa.int32(), nullable=False),
            pa.field("crowd_index", pa.float64()),
            pa.field("head_size", pa.float64()),
        ]
    )


PERSON_SCHEMA = person_schema(17)
"""The person columns of a 17-joint store; other skeletons differ in the list lengths only."""

_ID = [pa.field("image_id", pa.int64(), nullable=False), pa.field("data_set", pa.string(), nullable=False)]

IMAGES_SCHEMA = pa.schema(
    [
        *_ID,
        pa.field("file_name", pa.string(), nullable=False),
        pa.field("width", pa.int32()),  # null where neither the annotations say nor the image was read
        pa.field("height", pa.int32()),
        pa.field("crowd_index", pa.float64()),
    ]
)

GROUND_TRUTH_SCHEMA = pa.schema(
    [
        pa.field("annotation_id", pa.int64(), nullable=False),
        *_ID,
        pa.field("category_id", pa.int64(), nullable=False),
        pa.field("box_xywh", pa.list_(pa.float64(), 4), nullable=False),  # as annotated
        pa.field("area", pa.float64(), nullable=False),
        pa.field("is_crowd", pa.bool_(), nullable=False),
        pa.field("num_keypoints", pa.int32(), nullable=False),
        pa.field("keypoints", pa.list_(pa.float64()), nullable=False),  # x, y, v per joint
        pa.field("head_size", pa.float64()),
    ]
)

REJECTS_SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.int64()),
        pa.field("data_set", pa.string(), nullable=False),
        pa.field("annotation_id", pa.int64()),
        pa.field("file_name", pa.string()),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("detail", pa.string(), nullable=False),
        pa.field("persons", pa.int64(), nullable=False),  # rows that this reject cost
    ]
)
