"""Sources of a crop store: an annotation file with its images, perhaps with a detector's boxes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field

from efafnet.models.settings import Settings
from efafnet.models.skeleton import SKELETONS, Skeleton
from efafnet.pipelines.crops.detection_checks import beside_annotations
from efafnet.pipelines.crops.geometry import BoxRule
from efafnet.pipelines.crops.images import ImageFolder
from efafnet.pipelines.crops.manifest import SourceRecord, parse_manifest, read_document
from efafnet.pipelines.formats.annotations import AREA_OF_BOX, SOURCE_STRIDE, Annotation, Annotations, ImageEntry
from efafnet.pipelines.formats.categories import PERSON_CATEGORY, CategoryNames, Chosen, sentence_of
from efafnet.pipelines.formats.coco import parse_coco
from efafnet.pipelines.formats.detections import parse_detections
from efafnet.pipelines.formats.files import read_json
from efafnet.pipelines.formats.images import ImageTable
from efafnet.pipelines.formats.joint_map import JointMap, mapped
from efafnet.pipelines.formats.mpii import parse_mpii_json, read_mpii_mat
from efafnet.pipelines.formats.plausibility import odd_boxes, odd_scores, plausibility_of
from efafnet.pipelines.formats.rejects import Reject
from efafnet.platform.mirror import Location, is_address
from efafnet.platform.storage import sha256_file, sha256_json
from efafnet.platform.yaml_text import load_yaml, problem_of, read_yaml_file


class SourceConfig(Settings):
    """One annotation file and its images."""

    annotations: Path
    """Annotation file: COCO-style JSON (COCO, CrowdPose, OCHuman, custom), MPII's JSON or MPII's .mat."""
    images: Location
    """Folder that the annotations' file names are relative to: local, or s3://…, gs://…."""
    outside_images: bool = False
    """Whether file names may lead out of that folder: by .., as absolute paths, or over symbolic links. Annotations
    from elsewhere could otherwise put any picture of this machine into the store."""
    format: Literal["auto", "coco", "mpii_json", "mpii_mat"] = "auto"
    """Format of the annotation file; auto tells by its content."""
    skeleton: str = "auto"
    """auto reads the joints from the file; coco17, mpii16, crowdpose14, a YAML file with a skeleton's fields, or a crop
    store that has them."""
    categories: CategoryNames = ()
    """Names or numbers of the file's categories that are persons; by default the only one that lists joints."""
    joint_map: JointMap | None = None
    """Which joint of this source is which of the store's (store_joints=): a mapping, a YAML file of lines STORE_JOINT:
    SOURCE_JOINT, or by_name for equal names. Joints without one are not annotated here: they weigh nothing."""
    detections: Path | None = None
    """COCO-style detections (image_id, bbox, score) that replace the annotated boxes; such rows have no joints."""
    box_rule: Literal["auto", "sbn", "mmpose", "unclipped"] = "auto"
    """How boxes are clipped: sbn (loses a pixel, as simple baselines and HRNet), mmpose, unclipped. auto: the
    protocol's for annotated boxes (sbn without one), unclipped for detections and MPII."""
    orientation: Literal["stored", "upright"] = "stored"
    """Whether boxes and joints refer to the pixels as stored, as COCO's do, or to the image as viewers show it, turned
    as its orientation tag says."""
    least_box_px: float = Field(default=0.0, ge=0.0)
    """Annotated boxes are widened to this many pixels about their middle: tools that draw a box around the joints give
    none at all to a person on one line. A detector's boxes are left as they are."""
    data_set: str | None = None
    """Name of this source in the store; the annotation file's name without its ending by default."""


@dataclass(frozen=True)
class WantedPerson:
    """A person to crop. Lengths are in pixels of the image."""

    person_id: int
    """Unique in the store."""
    box_xywh: tuple[float, ...]
    """Left, top, width, height, as annotated or detected."""
    area: float
    """What OKS measures by, in square pixels."""
    box_score: float
    """The detector's confidence; 1 for an annotated box."""
    keypoints: tuple[float, ...]
    """x, y, v of each joint; all 0 where a detector gave the box."""
    head_size: float | None
    """MPII's head size; None where it is not known."""


@dataclass(frozen=True)
class Source:
    """A source, read and checked."""

    record: SourceRecord
    folder: ImageFolder
    box_rule: BoxRule
    upright: bool
    """Whether images are turned as their orientation tags say."""
    content: Annotations
    wanted: dict[int, list[WantedPerson]]
    """Persons to crop by image id, images in file order."""
    rejects: list[Reject]
    """What was left out without looking at an image."""
    candidates: int
    """Annotations or detections read."""
    crowds: int
    """Crowd regions among them."""
    remarks: list[str]
    """What a user should be told."""

    @property
    def num_wanted(self) -> int:
        """Persons to crop."""
        return sum(len(persons) for persons in self.wanted.values())


_Chosen = tuple[int, WantedPerson] | Reject | None
"""A person to crop with its image, a reject, or None for what is no person."""


def load_source(
    config: SourceConfig, number: int, annotated_rule: BoxRule = "sbn", joints: Skeleton | None = None
) -> Source:
    """Read source ``number`` (0-based): ids are shifted so that merged sources do not collide.

    ``annotated_rule`` is what ``box_rule=auto`` means for annotated boxes; ``joints`` are the store's, which a
    ``joint_map`` needs.

    Raises ValueError with one clear message where a file is missing or of another format.
    """
    content = _read(config)
    # Corners and units are seen in the numbers as they were annotated, whoever gives the boxes.
    remarks = [*content.remarks, *plausibility_of(content, config.annotations.name)]
    if config.joint_map is not None:
        if joints is None:
            raise ValueError(f"{config.annotations}: joint_map needs the joints of the store: give store_joints=coco17")
        content, told = mapped(content, joints, config.joint_map, config.annotations.name)
        remarks += told
    try:
        content = content.shifted(number)
    except ValueError as error:
        raise ValueError(f"{config.annotations}: {error}") from error
    folder = ImageFolder(
        config.images if is_address(config.images) else str(Path(config.images).expanduser().absolute()),
        outside=config.outside_images,
    )
    folder.check()
    if config.detections is None:
        chosen: Sequence[_Chosen] = [
            _from_annotation(annotation, config.least_box_px) for annotation in content.annotations
        ]
        candidates = len(content.annotations) + sum(r.persons for r in content.rejects)
    else:
        if config.least_box_px:
            remarks.append(f"least_box_px={config.least_box_px:g} widens annotated boxes alone, no detector's")
        chosen = _from_detections(config.detections.expanduser(), content, number * SOURCE_STRIDE, remarks)
        candidates = len(chosen)
    by_image: dict[int, list[WantedPerson]] = {image.image_id: [] for image in content.images}
    for image_id, person in (item for item in chosen if not isinstance(item, Reject) and item is not None):
        by_image[image_id].append(person)
    wanted = {image_id: persons for image_id, persons in by_image.items() if persons}
    # Faults of annotations cost no row where a detector gives the boxes.
    faults = content.rejects if config.detections is None else []
    rejects = [*faults, *(item for item in chosen if isinstance(item, Reject))]
    content, sizes = _located(content, wanted, folder, remarks)
    box_rule = _box_rule(config, content, annotated_rule)
    return Source(
        record=_record(config, content, sizes, box_rule),
        folder=folder,
        box_rule=box_rule,
        upright=config.orientation == "upright",
        content=content,
        wanted=wanted,
        rejects=rejects,
        candidates=candidates,
        crowds=sum(annotation.is_crowd for annotation in content.annotations),
        remarks=remarks,
    )


def _read(config: SourceConfig) -> Annotations:
    path, form = config.annotations.expanduser(), config.format
    if path.is_file() and (form == "mpii_mat" or (form == "auto" and path.suffix == ".mat")):
        return read_mpii_mat(path)
    content = read_json(path)
    if form == "mpii_json" or (form == "auto" and _looks_like_mpii(content)):
        return parse_mpii_json(content, path)
    return parse_coco(content, path, named_skeleton(config.skeleton), config.categories)


def _looks_like_mpii(content: Any) -> bool:
    return isinstance(content, list) and bool(content) and isinstance(content[0], dict) and "center" in content[0]


def named_skeleton(name: str) -> Skeleton | None:
    """A known skeleton, that of a YAML file or of a crop store; None for ``auto``. ValueError for none of these."""
    if name == "auto":
        return None
    if name in SKELETONS:
        return SKELETONS[name]
    path = Path(name).expanduser()
    if path.is_dir():
        return parse_manifest(read_document(path), path).skeleton
    if not path.is_file():
        raise ValueError(f"skeleton {name!r} is neither auto, {', '.join(SKELETONS)} nor a YAML file or a crop store")
    try:
        return Skeleton.model_validate(load_yaml(read_yaml_file(path)))
    except (yaml.YAMLError, ValueError, RecursionError, OSError) as error:
        reason = problem_of(error) if isinstance(error, yaml.YAMLError) else sentence_of(error)
        raise ValueError(
            f"skeleton file {path}: {reason}; it is YAML with name, joints, flip_pairs, limbs, sigmas, upper_body"
        ) from error


def _box_rule(config: SourceConfig, content: Annotations, annotated_rule: BoxRule) -> BoxRule:
    if config.box_rule != "auto":
        return config.box_rule
    return annotated_rule if config.detections is None and content.format == "coco" else "unclipped"


def _from_annotation(annotation: Annotation, least_px: float) -> _Chosen:
    """The person to crop, with its image; None for a crowd region, which is never cropped."""
    if annotation.is_crowd:
        return None
    box, area = _widened(annotation, least_px)
    width, height = box[2:]

    def reject(reason: str, detail: str, persons: int = 1) -> Reject:
        number = f"annotation {annotation.annotation_id % SOURCE_STRIDE}"
        return Reject(reason, f"{number}: {detail}", annotation.image_id, annotation.annotation_id, None, persons)

    if not any(v > 0 for v in annotation.keypoints[2::3]):
        # Usual (43 % of COCO's persons), so no fault of the source: it does not count towards the limit.
        return reject("no_joints", "no joint is annotated", persons=0)
    if width <= 0 or height <= 0:
        flat = "; least_box_px=PIXELS widens it" if min(width, height) == 0 else ""
        return reject("box_invalid", f"box width and height must be positive; got {width:g} x {height:g}{flat}")
    if area <= 0:
        return reject("area_invalid", f"area must be positive; got {area:g}")
    person = WantedPerson(
        annotation.annotation_id,
        box,
        area,
        1.0,
        annotation.keypoints,
        annotation.head_size,
    )
    return annotation.image_id, person


def _widened(annotation: Annotation, least_px: float) -> tuple[tuple[float, float, float, float], float]:
    """Box and area with sides of at least ``least_px``; the area of a box that had none follows from the new one."""
    x, y, width, height = annotation.box_xywh
    if min(width, height) >= least_px or min(width, height) < 0:
        return annotation.box_xywh, annotation.area
    wide, high = max(width, least_px), max(height, least_px)
    area = annotation.area if annotation.area > 0 else high * wide * AREA_OF_BOX
    return (x - (wide - width) / 2, y - (high - height) / 2, wide, high), area


def _from_detections(
    path: Path, content: Annotations, offset: int, remarks: list[str]
) -> list[tuple[int, WantedPerson] | Reject]:
    """Persons of a detector's boxes, with their images; ids in the file are those before the shift by ``offset``."""
    images = ImageTable.of(replace(image, image_id=image.image_id - offset) for image in content.images)
    default = min(content.category_ids, default=PERSON_CATEGORY)
    chosen = Chosen(content.category_ids, default, content.category_names)
    found = parse_detections(read_json(path, "detections file"), path.name, chosen, images)
    sizes = {image.image_id - offset: (image.width, image.height) for image in content.images}
    odd = [
        *odd_boxes(found.box_xywh_px, found.image_id, sizes),
        *odd_scores(found.score),
        *beside_annotations(found, content.annotations, offset),
    ]
    remarks += [*found.remarks, *(f"{path.name}: {remark}" for remark in odd)]
    nothing = (0.0,) * (3 * content.skeleton.num_joints)
    columns = (found.entry, found.image_id, found.box_xywh_px, found.score)
    persons: list[tuple[int, tuple[int, WantedPerson] | Reject]] = [
        (entry, (image_id + offset, WantedPerson(entry + offset, tuple(box), box[2] * box[3], score, nothing, None)))
        for entry, image_id, box, score in zip(*(column.tolist() for column in columns), strict=True)
    ]
    for reject in found.rejects:
        image_id, entry = reject.image_id, reject.annotation_id
        assert entry is not None
        moved = None if image_id is None else image_id + offset
        reason = "box_invalid" if reject.reason == "box_empty" else reject.reason
        persons.append((entry, replace(reject, reason=reason, image_id=moved, annotation_id=entry + offset)))
    return [person for _, person in sorted(persons, key=lambda item: item[0])]


def _located(
    content: Annotations, wanted: dict[int, list[WantedPerson]], folder: ImageFolder, remarks: list[str]
) -> tuple[Annotations, dict[str, int]]:
    """The content with the names that the wanted images have in the folder, and their sizes in bytes, -1 if missing."""
    names = [image.file_name for image in content.images if image.image_id in wanted]
    sizes = dict(zip(names, folder.sizes(names), strict=True))
    spelled = folder.respelled(sizes)
    missing = [name for name, size in sizes.items() if size < 0 and name not in spelled]
    if near := folder.near(missing):
        remarks.append(
            f"{len(missing)} of {len(sizes)} images are not there by their names; {near[0]!r} may be {near[1]!r}: a "
            "name must have the ending and the folder of its file"
        )
    if not spelled:
        return content, sizes
    name, there = next(iter(spelled.items()))
    remarks.append(f"{len(spelled)} images are found under another spelling of their names: {name!r} is {there!r}")
    found = dict(zip(spelled.values(), folder.sizes(list(spelled.values())), strict=True))
    images = [replace(image, file_name=spelled.get(image.file_name, image.file_name)) for image in content.images]
    return replace(content, images=images), {
        spelled.get(name, name): found.get(spelled.get(name, name), size) for name, size in sizes.items()
    }


def _record(config: SourceConfig, content: Annotations, sizes: dict[str, int], box_rule: BoxRule) -> SourceRecord:
    return SourceRecord(
        data_set=config.data_set or config.annotations.stem,
        annotations=config.annotations.name,
        annotations_sha256=sha256_file(config.annotations.expanduser()),
        detections=config.detections.name if config.detections else None,
        detections_sha256=sha256_file(config.detections.expanduser()) if config.detections else None,
        images=config.images,
        images_sha256=sha256_json([list(sizes), list(sizes.values())]),
        format=content.format,
        box_rule=box_rule,
        orientation=config.orientation,
        joint_map=None if config.joint_map is None else str(config.joint_map),
    )


def image_index(source: Source) -> dict[int, ImageEntry]:
    """Images of a source by id."""
    return {image.image_id: image for image in source.content.images}
