"""The manifest of a crop store: what it holds, where it comes from, and how to know that it is whole."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, ValidationError

from efafnet.models.settings import Settings
from efafnet.models.skeleton import Skeleton
from efafnet.pipelines.crops.envelope import Envelope
from efafnet.pipelines.crops.file_table import FileRecord, Files, all_rows
from efafnet.platform.configuration_help import field_models
from efafnet.platform.mirror import is_address, read_remote
from efafnet.platform.presence import read_bytes, reading
from efafnet.platform.storage import sha256_json

MANIFEST = "manifest.json"
GROUND_TRUTH = "ground_truth.parquet"
IMAGES = "images.parquet"
REJECTS = "rejects.parquet"
FORMAT_VERSION = 1
COLUMNS_VERSION = 2
"""Of manifests that list their shards as columns; everything else is as in 1."""


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
    joint_map: str | None = None
    """Which joints of the source became which of the store, where they are not the same."""
    orientation: Literal["stored", "upright"] = "stored"
    """Whether images were taken as stored, or turned as their orientation tags say."""


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
    shards: Files
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
    page_checksums: bool = False
    """Whether every Parquet page carries its check sum, so that reading notices damage."""
    document_sha256: str | None = None
    """Digest of this document without this line, None in stores from before there was one."""

    def content_digest(self) -> str:
        """The digest that ``digest`` must equal."""
        return content_digest(self.model_dump(mode="json"))


def content_digest(document: Mapping[str, Any]) -> str:
    """Digest of the content a manifest's ``document`` describes; of the groups of settings every key counts, known to
    this version or not."""
    content = {
        **{name: document[name] for name in ("format_version", "skeleton", "envelope", "encoding")},
        "files": all_rows(document["shards"], document["tables"]),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def sealed(manifest: Manifest) -> dict[str, Any]:
    """The document of a manifest, with both of its digests."""
    document = manifest.model_dump(mode="json", exclude={"document_sha256"})
    document["digest"] = content_digest(document)
    return {**document, "document_sha256": sha256_json(document)}


def footer_sha256(path: Path) -> str:
    """Hex SHA-256 of a Parquet file's footer: metadata, their length in 4 bytes, and the 4 bytes that end the file."""
    with reading(path), path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 8))
        length = int.from_bytes(file.read(4), "little")
        file.seek(max(0, size - 8 - length))
        return hashlib.sha256(file.read()).hexdigest()


def read_document(location: str | Path) -> bytes:
    """The bytes of ``manifest.json`` of the store at ``location``.

    Raises ValueError where there is none, OSError where it cannot be read.
    """
    path = os.fspath(location)
    try:
        return read_remote(path, MANIFEST) if is_address(path) else read_bytes(Path(path) / MANIFEST)
    except (FileNotFoundError, NotADirectoryError) as error:
        what = "holds no manifest.json"
        if not (is_address(path) or Path(path).is_dir()):
            what = "is a file" if Path(path).exists() else "does not exist"
        raise ValueError(
            f"{path} is not a crop store: it {what}; make one with: efafnet prepare ANNOTATIONS IMAGES OUT"
        ) from error


class _DamageError(Exception):
    """A manifest that is not what was written."""


_DAMAGE = (json.JSONDecodeError, UnicodeDecodeError, AttributeError, RecursionError, ValidationError, _DamageError)


def parse_manifest(document: bytes, location: str | Path) -> Manifest:
    """The manifest in ``document``, of the store at ``location``. Keys that this version does not know are passed over.

    Raises ValueError where it is damaged or of another version.
    """
    try:
        content = json.loads(document)
        version = content.get("format_version")
        if version not in (FORMAT_VERSION, COLUMNS_VERSION):
            raise ValueError(
                f"crop store {location} has format version {version}, this code reads {FORMAT_VERSION} and "
                f"{COLUMNS_VERSION}; prepare it again"
            )
        manifest = Manifest.model_validate(_known(Manifest, content))
        _check_digests(content)
        return manifest
    except _DAMAGE as error:
        detail = str(error).splitlines()[0]
        raise ValueError(
            f"crop store {location}: manifest.json is damaged ({detail}); prepare the store again"
        ) from error


def _check_digests(content: dict[str, Any]) -> None:
    if content_digest(content) != content["digest"]:
        raise _DamageError("its digest does not match its content")
    whole = content.get("document_sha256")
    if whole is not None and sha256_json({k: v for k, v in content.items() if k != "document_sha256"}) != whole:
        raise _DamageError("its digest does not match its text")


def _known(model: type[BaseModel], content: Any) -> Any:
    """``content`` without the keys that ``model`` has no field for, in nested groups and lists of groups as well."""
    if isinstance(content, list):
        return [_known(model, item) for item in content]
    if not isinstance(content, dict):
        return content
    kept = {name: value for name, value in content.items() if name in model.model_fields}
    for name, value in kept.items():
        models = field_models(model.model_fields[name].annotation)
        if len(models) == 1:
            kept[name] = _known(models[0], value)
    return kept
