"""Columns of the crop store's tables. Coordinates are in pixels of the original image.

Plain Arrow types (numbers, binary, fixed-size lists), so that any Parquet reader reads them. What a column means stands
in the files too, as the ``description`` of each field's metadata; docs/data.md has the same as a table.
"""

from __future__ import annotations

import pyarrow as pa


def _column(name: str, kind: pa.DataType, meaning: str, *, nullable: bool = False) -> pa.Field:
    return pa.field(name, kind, nullable=nullable, metadata={"description": meaning})


def person_schema(num_joints: int) -> pa.Schema:
    """Columns of ``persons-*.parquet`` for K = ``num_joints``. The row's place in the store is its identity."""
    crop = "crop pixels (x, y, 1) to image pixels: the rows of a 2x3 affine, one after the other"
    numbers, k = pa.float64(), num_joints
    return pa.schema(
        [
            _column("image", pa.binary(), "the crop: a JPEG or PNG file, or raw RGB rows (the manifest's encoding)"),
            _column("crop_width", pa.int32(), "width of the crop in its own pixels"),
            _column("crop_height", pa.int32(), "height of the crop in its own pixels"),
            _column("crop_to_image", pa.list_(numbers, 6), crop),
            _column(
                "joints_px", pa.list_(numbers, 2 * k), "x0, y0, x1, y1, … in image pixels, as the joints are named"
            ),
            _column("visibility", pa.list_(pa.uint8(), k), "of each joint: 0 not annotated, 1 hidden, 2 visible"),
            _column(
                "box_xywh", pa.list_(numbers, 4), "left, top, width, height in image pixels, clipped by the box rule"
            ),
            _column("area", numbers, "area of the person in square image pixels, as COCO's OKS takes it"),
            _column("box_score", numbers, "confidence of the detector, 1 for annotated boxes"),
            _column("person_id", pa.int64(), "id of the annotation, or the detection's place in its file"),
            _column("image_id", pa.int64(), "id of the image in its data set"),
            _column("data_set", pa.string(), "name of the source it comes from"),
            _column("file_name", pa.string(), "name of the image's file in its source"),
            _column("image_width", pa.int32(), "width of the image in pixels"),
            _column("image_height", pa.int32(), "height of the image in pixels"),
            _column("crowd_index", numbers, "CrowdPose's crowd index of the image, else null", nullable=True),
            _column("head_size", numbers, "MPII's head size in image pixels, else null", nullable=True),
        ]
    )


PERSON_SCHEMA = person_schema(17)
"""The person columns of a 17-joint store; other skeletons differ in the list lengths only."""

_ID = [
    _column("image_id", pa.int64(), "id of the image in its data set"),
    _column("data_set", pa.string(), "name of the source it comes from"),
]

IMAGES_SCHEMA = pa.schema(
    [
        *_ID,
        _column("file_name", pa.string(), "name of the image's file in its source"),
        _column(
            "width", pa.int32(), "in pixels; null where the annotations do not say and nobody read it", nullable=True
        ),
        _column("height", pa.int32(), "in pixels; null as the width", nullable=True),
        _column("crowd_index", pa.float64(), "CrowdPose's crowd index, else null", nullable=True),
    ]
)

GROUND_TRUTH_SCHEMA = pa.schema(
    [
        _column("annotation_id", pa.int64(), "id of the annotation"),
        *_ID,
        _column("category_id", pa.int64(), "category of the annotation in its source"),
        _column("box_xywh", pa.list_(pa.float64(), 4), "left, top, width, height in image pixels, as annotated"),
        _column("area", pa.float64(), "in square image pixels, as annotated"),
        _column("is_crowd", pa.bool_(), "whether it is a crowd region: kept for scoring, never cropped"),
        _column("num_keypoints", pa.int32(), "joints annotated, as the source counts"),
        _column("keypoints", pa.list_(pa.float64()), "x, y, visibility of each joint, in image pixels"),
        _column("head_size", pa.float64(), "MPII's head size in image pixels, else null", nullable=True),
    ]
)

REJECTS_SCHEMA = pa.schema(
    [
        _column("image_id", pa.int64(), "id of the image, if known", nullable=True),
        _column("data_set", pa.string(), "name of the source"),
        _column("annotation_id", pa.int64(), "id of the annotation, null for a whole image", nullable=True),
        _column("file_name", pa.string(), "name of the image's file, if known", nullable=True),
        _column("reason", pa.string(), "why it was left out, one of docs/data.md's reasons"),
        _column("detail", pa.string(), "what was found"),
        _column("persons", pa.int64(), "persons that this cost"),
    ]
)
