"""The manifest of a crop store: what it holds, where it comes from, and how to know that it is whole."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, ValidationError

from efafnet.models.settings import Settings
from efafnet.models.skeleton import Skeleton
from efafnet.pipelines.crops.envelope import Envelope
from efafnet.platform.mirror import is_address, read_remote

MANIFEST = "manifest.json"
GROUND_TRUTH = "ground_truth.parquet"
IMAGES = "images.parquet"
REJECTS = "rejects.parquet"
FORMAT_VERSION = 1


class Encoding(Settings):
    """How crops are stored."""

    format: Literal["jpeg", "png", "raw"] = "jpeg"
    """jpeg is small and fast; png is exact and slow; raw (height x width x 3 RGB bytes) is exact, fast and large."""
    quality: Literal["source"] | Annotated[int, Field(ge=1, le=100)] = "source"
    """JPEG quality, 1 to 100; source quantises each crop as its image was, which loses least for its size."""
    chroma: Annotated[Literal["444", "420"], BeforeValidator(str)] = "444"
    """JPEG chroma sampling where the source does not decide: 444 keeps colour at full resolution, 420 halves it."""


class SourceRecord(Settings):
    """One merged source."""

    data_set: str
    """Name written into the ``data_set`` column."""
    annotations: str
    """File name of the annotations."""
    annotations_sha256: str
    """Digest of the annotation file."""
    detections: str | None = None
    """File name of the detections that gave the boxes, if any."""
    detections_sha256: str | None = None
    """Digest of the detections file."""
    images: str
    """Where the images were read from."""
    images_sha256: str
    """Digest of the names and sizes in bytes of the images that were wanted."""
    format: str
    """Annotation format."""
    box_rule: str
    """Rule that turned annotated boxes into cropped boxes."""


class FileRecord(Settings):
    """One file of the store."""

    name: str
    """File name inside the store."""
    rows: int
    """Number of rows."""
    bytes: int
    """Size in bytes."""
    sha256: str
    """Digest of the file's bytes."""


class Counts(Settings):
    """What came in and what came out."""

    images: int
    """Images in the sources."""
    images_read: int
    """Images with at least one wanted person, so opened."""
    annotations: int
    """Annotations (or detections) in the sources."""
    crowds: int
    """Crowd regions: kept as ground truth, never cropped."""
    persons: int
    """Rows."""
    reduced: int
    """Crops stored below the original resolution because it is far denser than any served input needs."""


class Manifest(Settings):
    """What a store holds. Free of times and host names, so equal inputs give equal bytes."""

    format_version: int
    """Version of the layout."""
    skeleton: Skeleton
    """Joints of every row."""
    sources: tuple[SourceRecord, ...]
    """Where the rows come from, in order."""
    envelope: Envelope
    """Samples that the crops serve exactly."""
    encoding: Encoding
    """How crops are stored."""
    max_oversampling: float
    """Pixels per input pixel above which crops were reduced."""
    rows_per_group: int
    """Rows of a Parquet row group; the last of a shard may be shorter."""
    shards: tuple[FileRecord, ...]
    """Person shards in row order."""
    tables: tuple[FileRecord, ...]
    """The other tables."""
    counts: Counts
    """Row counts."""
    rejects: dict[str, int]
    """Number of rejects by reason."""
    versions: dict[str, str]
    """Software that wrote the store."""
    input_digest: str
    """Digest of the sources and of the settings: equal input, equal store."""
    digest: str
    """Digest of the content: skeleton, envelope, encoding and the bytes of every file."""

    def content_digest(self) -> str:
        """The digest that ``digest`` must equal."""
        content = {
            "format_version": self.format_version,
            "skeleton": self.skeleton.model_dump(mode="json"),
            "envelope": self.envelope.model_dump(mode="json"),
            "encoding": self.encoding.model_dump(mode="json"),
            "files": [[record.name, record.rows, record.sha256] for record in (*self.shards, *self.tables)],
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """Hex SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_manifest(location: str | Path) -> Manifest:
    """The manifest of the store at ``location``; ValueError where it is missing, damaged or of another version."""
    path = os.fspath(location)
    try:
        text = read_remote(path, MANIFEST) if is_address(path) else (Path(path) / MANIFEST).read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        exists = is_address(path) or Path(path).is_dir()
        what = "holds no manifest.json" if exists else "does not exist"
        raise ValueError(
            f"{path} is not a crop store: it {what}; make one with: efafnet prepare ANNOTATIONS IMAGES OUT"
        ) from error
    try:
        content = json.loads(text)
        version = content.get("format_version")
        if version != FORMAT_VERSION:
            raise ValueError(
                f"crop store {path} has format version {version}, this code reads {FORMAT_VERSION}; prepare it again"
            )
        return Manifest.model_validate(content)
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError, ValidationError) as error:
        detail = str(error).splitlines()[0]
        raise ValueError(f"crop store {path}: manifest.json is damaged ({detail}); prepare the store again") from error
