"""Sources of a crop store: an annotation file with its images, perhaps with a detector's boxes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from efafnet.models.settings import Settings
from efafnet.models.skeleton import SKELETONS, Skeleton
from efafnet.pipelines.crops.annotations import (
    SOURCE_STRIDE,
    Annotation,
    Annotations,
    ImageEntry,
    Reject,
    finite,
    parse_coco,
    read_json,
)
from efafnet.pipelines.crops.geometry import BoxRule
from efafnet.pipelines.crops.images import ImageFolder
from efafnet.pipelines.crops.manifest import SourceRecord
from efafnet.pipelines.crops.mpii import parse_mpii_json, read_mpii_mat
from efafnet.platform.mirror import Location, is_address
from efafnet.platform.storage import sha256_file, sha256_json


class SourceConfig(Settings):
    """One annotation file and its images."""

    annotations: Path
    """Annotation file: COCO-style JSON (COCO, CrowdPose, OCHuman, custom), MPII's JSON or MPII's .mat."""
    images: Location
    """Folder that the annotations' file names are relative to: local, or s3://…, gs://…."""
    format: Literal["auto", "coco", "mpii_json", "mpii_mat"] = "auto"
    """Format of the annotation file; auto tells by its content."""
    skeleton: str = "auto"
    """auto reads the joints from the file; coco17, mpii16, crowdpose14, or a YAML file with a skeleton's fields."""
    detections: Path | None = None
    """COCO-style detections (image_id, bbox, score) that replace the annotated boxes; such rows have no joints."""
    box_rule: Literal["auto", "sbn", "mmpose", "unclipped"] = "auto"
    """How boxes are clipped: sbn (loses a pixel, as simple baselines and HRNet), mmpose, unclipped. auto: sbn for
    annotated boxes, unclipped for detections and MPII."""
    data_set: str | None = None
    """Name of this source in the store; the annotation file's name without its ending by default."""


@dataclass(frozen=True)
class WantedPerson:
    """A person to crop."""

    person_id: int
    box_xywh: tuple[float, ...]
    area: float
    box_score: float
    keypoints: tuple[float, ...]
    head_size: float | None


@dataclass(frozen=True)
class Source:
    """A source, read and checked."""

    record: SourceRecord
    folder: ImageFolder
    box_rule: BoxRule
    content: Annotations
    wanted: dict[int, list[WantedPerson]]
    """Persons to crop by image id, images in file order."""
    rejects: list[Reject]
    """What was left out without looking at an image."""
    candidates: int
    """Annotations or detections read."""
    crowds: int
    """Crowd regions among them."""

    @property
    def num_wanted(self) -> int:
        """Persons to crop."""
        return sum(len(persons) for persons in self.wanted.values())


def load_source(config: SourceConfig, number: int) -> Source:
    """Read source ``number`` (0-based): ids are shifted so that merged sources do not collide.

    Raises ValueError with one clear message where a file is missing or of another format.
    """
    content = _read(config).shifted(number)
    folder = ImageFolder(
        config.images if is_address(config.images) else str(Path(config.images).expanduser().absolute())
    )
    folder.check()
    if config.detections is None:
        chosen = [_from_annotation(annotation) for annotation in content.annotations]
        candidates = len(content.annotations) + sum(r.persons for r in content.rejects)
    else:
        offset = number * SOURCE_STRIDE
        chosen = list(_from_detections(config.detections, content, offset))
        candidates = len(chosen)
    by_image: dict[int, list[WantedPerson]] = {image.image_id: [] for image in content.images}
    for image_id, person in (item for item in chosen if not isinstance(item, Reject) and item is not None):
        by_image[image_id].append(person)
    wanted = {image_id: persons for image_id, persons in by_image.items() if persons}
    # Faults of annotations cost no row where a detector gives the boxes.
    faults = content.rejects if config.detections is None else []
    rejects = [*faults, *(item for item in chosen if isinstance(item, Reject))]
    return Source(
        record=_record(config, content, folder, wanted),
        folder=folder,
        box_rule=_box_rule(config, content),
        content=content,
        wanted=wanted,
        rejects=rejects,
        candidates=candidates,
        crowds=sum(annotation.is_crowd for annotation in content.annotations),
    )


def _read(config: SourceConfig) -> Annotations:
    path, form = config.annotations.expanduser(), config.format
    if not path.is_file():
        raise ValueError(f"annotation file {path} does not exist; give a JSON file (or MPII's .mat)")
    if form == "mpii_mat" or (form == "auto" and path.suffix == ".mat"):
        return read_mpii_mat(path)
    content = read_json(path)
    if form == "mpii_json" or (form == "auto" and _looks_like_mpii(content)):
        return parse_mpii_json(content, path)
    return parse_coco(content, path, named_skeleton(config.skeleton))


def _looks_like_mpii(content: Any) -> bool:
    return isinstance(content, list) and bool(content) and isinstance(content[0], dict) and "center" in content[0]


def named_skeleton(name: str) -> Skeleton | None:
    """A known skeleton, or that of a YAML file; None for ``auto``. ValueError for what is neither."""
    if name == "auto":
        return None
    if name in SKELETONS:
        return SKELETONS[name]
    path = Path(name).expanduser()
    if not path.is_file():
        raise ValueError(f"skeleton {name!r} is neither auto, {', '.join(SKELETONS)} nor a YAML file")
    try:
        return Skeleton.model_validate(yaml.safe_load(path.read_text()))
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"skeleton file {path}: {error}") from error


def _box_rule(config: SourceConfig, content: Annotations) -> BoxRule:
    if config.box_rule != "auto":
        return config.box_rule
    return "sbn" if config.detections is None and content.format == "coco" else "unclipped"


def _from_annotation(annotation: Annotation) -> tuple[int, WantedPerson] | Reject | None:
    """The person to crop, with its image; None for a crowd, which is nobody."""
    if annotation.is_crowd:
        return None
    _, _, width, height = annotation.box_xywh

    def reject(reason: str, detail: str, persons: int = 1) -> Reject:
        return Reject(reason, detail, annotation.image_id, annotation.annotation_id, None, persons)

    if not any(v > 0 for v in annotation.keypoints[2::3]):
        # Usual (43 % of COCO's persons), so no fault of the source: it does not count towards the limit.
        return reject("no_joints", "no joint is annotated", persons=0)
    if width <= 0 or height <= 0:
        return reject("box_invalid", f"box width and height must be positive; got {width:g} x {height:g}")
    if annotation.area <= 0:
        return reject("area_invalid", f"area must be positive; got {annotation.area:g}")
    person = WantedPerson(
        annotation.annotation_id,
        annotation.box_xywh,
        annotation.area,
        1.0,
        annotation.keypoints,
        annotation.head_size,
    )
    return annotation.image_id, person


def _from_detections(path: Path, content: Annotations, offset: int) -> Iterator[tuple[int, WantedPerson] | Reject]:
    detections = read_json(path)
    if not isinstance(detections, list) or not all(isinstance(d, dict) and "bbox" in d for d in detections):
        raise ValueError(f"{path} is not a detections file: it needs a list of objects with image_id, bbox, score")
    known = {image.image_id for image in content.images}
    categories = {annotation.category_id for annotation in content.annotations} or {1}
    nothing = (0.0,) * (3 * content.skeleton.num_joints)
    for number, detection in enumerate(detections):
        if detection.get("category_id", 1) not in categories:
            continue
        box, score, image_id = detection["bbox"], detection.get("score", 1.0), detection.get("image_id")
        image_id = image_id + offset if isinstance(image_id, int) else None
        if image_id not in known:
            yield Reject("unknown_image", f"detection {number} refers to image {image_id!r}", None, number + offset)
        elif not (len(box) == 4 and all(map(finite, (*box, score))) and box[2] > 0 and box[3] > 0):
            detail = f"bbox and score must be finite, width and height positive; got {box}, {score}"
            yield Reject("box_invalid", detail, image_id, number + offset)
        else:
            x, y, width, height = (float(value) for value in box)
            area = width * height
            yield image_id, WantedPerson(number + offset, (x, y, width, height), area, float(score), nothing, None)


def _record(
    config: SourceConfig, content: Annotations, folder: ImageFolder, wanted: dict[int, list[WantedPerson]]
) -> SourceRecord:
    names = [image.file_name for image in content.images if image.image_id in wanted]
    sizes = folder.sizes(names)
    return SourceRecord(
        data_set=config.data_set or config.annotations.stem,
        annotations=config.annotations.name,
        annotations_sha256=sha256_file(config.annotations.expanduser()),
        detections=config.detections.name if config.detections else None,
        detections_sha256=sha256_file(config.detections) if config.detections else None,
        images=config.images,
        images_sha256=sha256_json([names, sizes]),
        format=content.format,
        box_rule=_box_rule(config, content),
    )


def image_index(source: Source) -> dict[int, ImageEntry]:
    """Images of a source by id."""
    return {image.image_id: image for image in source.content.images}
