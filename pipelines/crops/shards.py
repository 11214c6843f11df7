"""One shard: a fixed run of images in, one Parquet file of their persons out. Pure but for the file it writes.

Which images make a shard is decided before anything is read, so the bytes of a shard depend neither on the number of
CPUs nor on which machine writes it.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import secrets
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from efafnet.models.settings import Settings
from efafnet.models.skeleton import Skeleton
from efafnet.pipelines.crops import geometry
from efafnet.pipelines.crops.card import described
from efafnet.pipelines.crops.encode import JpegTables, encode_crop, jpeg_tables
from efafnet.pipelines.crops.envelope import Demand, Envelope
from efafnet.pipelines.crops.geometry import Float64
from efafnet.pipelines.crops.images import ImageFolder, ImageProblemError, check_declared, decode_image
from efafnet.pipelines.crops.manifest import Encoding
from efafnet.pipelines.crops.schema import person_schema
from efafnet.pipelines.formats.pixels import is_animated, orientation_of
from efafnet.pipelines.formats.rejects import Reject
from efafnet.platform.storage import full_disk_named

UInt8 = npt.NDArray[np.uint8]

# Crops begin on the JPEG block grid of their image, so that storing them again quantises the same blocks.
_GRID_PX = 16
# Images that are read at once, and ahead of the one being cut: object storage takes its time for each.
_READERS, _READ_AHEAD = 8, 16

PERSON_STRUCT = pa.struct(
    [
        pa.field("person_id", pa.int64()),
        pa.field("box_xywh", pa.list_(pa.float64())),
        pa.field("area", pa.float64()),
        pa.field("box_score", pa.float64()),
        pa.field("keypoints", pa.list_(pa.float64())),
        pa.field("head_size", pa.float64()),
    ]
)

PLAN_SCHEMA = pa.schema(
    [
        pa.field("shard", pa.int32()),
        pa.field("folder", pa.string()),
        pa.field("outside", pa.bool_()),
        pa.field("box_rule", pa.string()),
        pa.field("upright", pa.bool_()),
        pa.field("data_set", pa.string()),
        pa.field("image_id", pa.int64()),
        pa.field("file_name", pa.string()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("crowd_index", pa.float64()),
        pa.field("persons", pa.list_(PERSON_STRUCT)),
    ]
)
"""What Ray Data carries: one row per image with all its wanted persons."""


class CropSettings(Settings):
    """What decides the content of a shard."""

    skeleton: Skeleton
    """Joints of every person."""
    envelope: Envelope
    """Samples that the crops must serve."""
    encoding: Encoding
    """How crops are stored."""
    max_oversampling: float
    """Image pixels per input pixel at the closest zoom above which a crop is reduced to that density."""
    rows_per_group: int
    """Rows of a Parquet row group."""


@dataclass(frozen=True)
class ShardResult:
    """What became of one shard."""

    index: int
    name: str
    rows: int
    bytes: int
    sha256: str
    images: int
    """Images opened."""
    reduced: int
    """Crops stored below the original resolution."""
    rejects: list[dict[str, Any]] = field(default_factory=list)
    """Rejects as rows of the rejects table."""
    sizes: list[list[int]] = field(default_factory=list)
    """image_id, width, height of images whose annotations do not say."""
    noticed: dict[str, int] = field(default_factory=dict)
    """Images with an orientation tag (rotated), or more than one picture (animated)."""

    @property
    def lost(self) -> int:
        """Persons lost to rejects."""
        return sum(reject["persons"] for reject in self.rejects)


@dataclass(frozen=True)
class Crop:
    """A crop cut out of its image."""

    pixels: UInt8
    """(h, w, 3) BGR."""
    crop_to_image: Float64
    """(2, 3) affine from crop pixels to image pixels."""

    @property
    def is_reduced(self) -> bool:
        """Whether the crop is below the original resolution."""
        return bool(self.crop_to_image[0, 0] > 1)


def cut(image: UInt8, demand: Demand, max_oversampling: float) -> Crop | None:
    """The part of ``image`` (h, w, 3) that ``demand`` needs; None where it is empty.

    It is reduced, by averaging areas, to ``max_oversampling`` pixels per input pixel where it is denser than that.
    """
    height, width = image.shape[:2]
    x1, y1 = (max(0, math.floor(v) // _GRID_PX * _GRID_PX) for v in demand.bounds[:2])
    x2, y2 = min(width, math.ceil(demand.bounds[2]) + 1), min(height, math.ceil(demand.bounds[3]) + 1)
    if x2 <= x1 or y2 <= y1:
        return None
    pixels = np.ascontiguousarray(image[y1:y2, x1:x2])
    factor = max_oversampling / demand.density
    if factor >= 1:
        return Crop(pixels, np.array([[1.0, 0.0, x1], [0.0, 1.0, y1]]))
    small = (max(1, math.ceil((x2 - x1) * factor)), max(1, math.ceil((y2 - y1) * factor)))
    reduced = cv2.resize(pixels, small, interpolation=cv2.INTER_AREA)
    zoom_x, zoom_y = (x2 - x1) / small[0], (y2 - y1) / small[1]
    # Pixel centres are integers: the middle of the first reduced pixel is (zoom - 1) / 2 into the region.
    affine = np.array([[zoom_x, 0.0, x1 + (zoom_x - 1) / 2], [0.0, zoom_y, y1 + (zoom_y - 1) / 2]])
    return Crop(reduced, affine)  # type: ignore[arg-type]


class _ShardBuilder:
    """Rows and rejects of one shard, in the making."""

    def __init__(self, settings: CropSettings) -> None:
        self.settings = settings
        self.rejects: list[Reject] = []
        self.reject_sets: list[str] = []
        self.sizes: list[list[int]] = []
        self.images = 0
        self.reduced = 0
        self.noticed: Counter[str] = Counter()
        self._folders: dict[tuple[str, bool], ImageFolder] = {}

    def rows(self, entries: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Rows of images of the plan; what cannot be used goes to the rejects."""
        with ThreadPoolExecutor(_READERS, thread_name_prefix="images-read") as pool:
            reading: deque[tuple[dict[str, Any], Future[bytes]]] = deque()
            for entry in entries:
                folder = self._folder(entry["folder"], entry["outside"])
                reading.append((entry, pool.submit(folder.read, entry["file_name"])))
                if len(reading) > _READ_AHEAD:
                    yield from self._rows_of(*reading.popleft())
            while reading:
                yield from self._rows_of(*reading.popleft())

    def _folder(self, location: str, outside: bool) -> ImageFolder:
        return self._folders.setdefault((location, outside), ImageFolder(location, outside=outside))

    def _rows_of(self, entry: dict[str, Any], content: Future[bytes]) -> Iterator[dict[str, Any]]:
        self.images += 1
        try:
            image, tables = self._open(entry, content.result())
        except ImageProblemError as problem:
            self._reject(entry, problem.reason, problem.detail, None, len(entry["persons"]))
            return
        if entry["width"] is None:
            self.sizes.append([entry["image_id"], image.shape[1], image.shape[0]])
        for person in entry["persons"]:
            row = self._row(entry, image, tables, person)
            if row is not None:
                yield row

    def _open(self, entry: dict[str, Any], data: bytes) -> tuple[UInt8, JpegTables | None]:
        check_declared(data, None if entry["width"] is None else (entry["width"], entry["height"]))
        image = decode_image(data, upright=entry["upright"])
        orientation = orientation_of(data)
        self.noticed["rotated"] += orientation != 1
        self.noticed["animated"] += is_animated(data)
        height, width = image.shape[:2]
        if entry["width"] is not None and (entry["width"], entry["height"]) != (width, height):
            turned = entry["width"] == height and entry["height"] == width and orientation >= 5
            other = "stored" if entry["upright"] else "upright"
            raise ImageProblemError(
                "image_size_differs",
                f"is {width}x{height}, its annotations say {entry['width']}x{entry['height']}"
                + (f"; they agree once it is turned by its orientation tag: orientation={other}" if turned else ""),
            )
        return image, jpeg_tables(data)

    def _row(
        self, entry: dict[str, Any], image: UInt8, tables: JpegTables | None, person: dict[str, Any]
    ) -> dict[str, Any] | None:
        settings, (height, width) = self.settings, image.shape[:2]
        box = geometry.clip_box(person["box_xywh"], width, height, entry["box_rule"])
        # Asked of the annotated box: SBN's rule would move one that lies left of the image into it.
        x, y, box_width, box_height = person["box_xywh"]
        outside = x + box_width <= 0 or y + box_height <= 0 or x > width - 1 or y > height - 1
        if outside or box[2:].min() < 0 or box[2:].max() <= 0:
            detail = f"box {person['box_xywh']} has no part in the image of {width}x{height} pixels"
            if not outside:
                rule = entry["box_rule"]
                detail = f"box {person['box_xywh']} has no pixel left by box_rule={rule}; box_rule=unclipped keeps it"
            self._reject(entry, "box_outside_image", detail, person["person_id"], 1)
            return None
        keypoints = np.array(person["keypoints"], dtype=np.float64).reshape(-1, 3)
        joints, visibility = keypoints[:, :2], keypoints[:, 2].astype(np.uint8)
        demand = settings.envelope.demand(settings.skeleton, box, joints, visibility)
        crop = cut(image, demand, settings.max_oversampling)
        # A box inside the image has its centre inside, or at most half its size outside.
        assert crop is not None
        self.reduced += int(crop.is_reduced)
        return {
            "image": encode_crop(crop.pixels, settings.encoding, None if crop.is_reduced else tables),
            "crop_width": crop.pixels.shape[1],
            "crop_height": crop.pixels.shape[0],
            "crop_to_image": crop.crop_to_image.ravel(),
            "joints_px": joints.ravel(),
            "visibility": visibility,
            "box_xywh": box,
            "image_width": width,
            "image_height": height,
            **{name: person[name] for name in ("area", "box_score", "person_id", "head_size")},
            **{name: entry[name] for name in ("image_id", "data_set", "file_name", "crowd_index")},
        }

    def _reject(self, entry: dict[str, Any], reason: str, detail: str, person_id: int | None, persons: int) -> None:
        self.rejects.append(Reject(reason, detail, entry["image_id"], person_id, entry["file_name"], persons))
        self.reject_sets.append(entry["data_set"])


def shard_name(index: int) -> str:
    """File name of shard ``index``."""
    return f"persons-{index:05d}.parquet"


def write_shard(settings: CropSettings, index: int, entries: list[dict[str, Any]], directory: Path) -> ShardResult:
    """Write shard ``index`` into ``directory`` from plan rows ``entries``, and beside it what became of it.

    The record is written last and whole, so a shard with a record is a finished one.
    """
    # One CPU per task; OpenCV's own threads would compete with the other tasks.
    cv2.setNumThreads(0)
    builder = _ShardBuilder(settings)
    path = directory / shard_name(index)
    # A task that Ray believes dead may still be writing the same shard.
    temporary = path.with_suffix(f".{secrets.token_hex(4)}.writing")
    schema = described(person_schema(settings.skeleton.num_joints), settings.skeleton, settings.encoding)
    rows = 0
    sink = HashingFile(temporary)
    with full_disk_named(path), sink, pq.ParquetWriter(sink, schema, **parquet_options(schema)) as writer:
        for group in _grouped(builder.rows(entries), settings.rows_per_group):
            writer.write_table(pa.Table.from_pylist(group, schema=schema), row_group_size=settings.rows_per_group)
            rows += len(group)
    temporary.replace(path)
    named = zip(builder.rejects, builder.reject_sets, strict=True)
    result = ShardResult(
        index,
        path.name,
        rows,
        path.stat().st_size,
        sink.hexdigest(),
        builder.images,
        builder.reduced,
        [{**asdict(reject), "data_set": data_set} for reject, data_set in named],
        builder.sizes,
        dict(builder.noticed),
    )
    with full_disk_named(path):
        temporary.write_text(json.dumps(asdict(result)), encoding="utf-8")
    temporary.replace(record_path(directory, index))
    return result


class HashingFile(io.FileIO):
    """A file that knows the SHA-256 of what was written: a shard is not read again for its digest."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "wb")
        self._hash = hashlib.sha256()

    def write(self, data: Any) -> int:
        """Write all of ``data``; the number of its bytes."""
        self._hash.update(data)
        written = 0
        while written < len(data):
            written += super().write(memoryview(data)[written:])
        return written

    def hexdigest(self) -> str:
        """Digest of everything written."""
        return self._hash.hexdigest()


def record_path(directory: Path, index: int) -> Path:
    """Where the result of a finished shard is kept until the store is complete."""
    return directory / f"persons-{index:05d}.json"


def read_record(directory: Path, index: int) -> ShardResult | None:
    """Result of a shard finished by an earlier run, None where it is not finished or not as recorded."""
    try:
        result = ShardResult(**json.loads(record_path(directory, index).read_text(encoding="utf-8")))
        whole = (directory / result.name).stat().st_size == result.bytes
    except (OSError, ValueError, TypeError):
        return None
    return result if whole else None


def _grouped(rows: Iterator[dict[str, Any]], size: int) -> Iterator[list[dict[str, Any]]]:
    group: list[dict[str, Any]] = []
    for row in rows:
        group.append(row)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


def parquet_options(schema: pa.Schema) -> dict[str, Any]:
    """Crops are compressed already, and statistics or dictionaries of them would only cost."""
    small = [name for name in schema.names if name != "image"]
    # Parquet names the values of a list column by their path.
    paths = [f"{name}.list.element" if pa.types.is_fixed_size_list(schema.field(name).type) else name for name in small]
    return {
        "compression": {"image": "NONE", **dict.fromkeys(paths, "ZSTD")},
        "use_dictionary": [name for name in small if pa.types.is_string(schema.field(name).type)],
        "write_statistics": ["person_id", "image_id"],
        "write_page_checksum": True,
    }
