"""`efafnet detect SOURCE OUT`: where a detector sees persons in the images of a set, as COCO results, and how well."""

from __future__ import annotations

import json
import time
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from efafnet.pipelines.crops.images import ImageFolder, ImageProblemError, decode_image, tell_orientation
from efafnet.pipelines.crops.store import IMAGES, CropStore
from efafnet.pipelines.evaluation.boxes import box_figures
from efafnet.pipelines.evaluation.columns import Truth, truth, truth_of
from efafnet.pipelines.formats.coco import parse_coco
from efafnet.pipelines.formats.files import read_json
from efafnet.pipelines.formats.pixels import orientation_of, rgb_of
from efafnet.pipelines.formats.plausibility import odd_boxes
from efafnet.pipelines.formats.values import shown
from efafnet.pipelines.prediction.config import DetectConfig
from efafnet.pipelines.prediction.detector import PersonDetector, in_batches
from efafnet.pipelines.prediction.person_boxes import Boxes
from efafnet.pipelines.prediction.stages import ahead
from efafnet.platform import console, machine
from efafnet.platform.provenance import code_version
from efafnet.platform.storage import check_output_file, sha256_bytes, sha256_file, write_json, write_text

_FIGURES = {
    "box_ap": "AP", "box_ap_50": "AP at IoU .5", "box_ap_75": "AP at IoU .75", "box_ap_medium": "AP, medium",
    "box_ap_large": "AP, large", "box_ar": "recall (AR, 100 boxes)",
}  # fmt: skip


@dataclass(frozen=True)
class ImageSet:
    """Images to look at, and who is known to be in them."""

    folder: ImageFolder
    names: dict[int, str]
    """File names by image id."""
    upright: bool
    """Whether images are turned as their orientation tags say."""
    truth: Truth
    category_id: int
    """The set's number for persons."""


@dataclass(frozen=True)
class Detected:
    """What came out."""

    results: list[dict[str, Any]]
    """COCO results: image_id, category_id, bbox, score; by image, the surest first."""
    figures: dict[str, float]
    """See :func:`box_figures`; none where nobody is known to be in the images."""
    sha256: str
    """Digest of the written file."""


def run_detect(config: DetectConfig) -> Detected:
    """Detect, write ``config.out`` and its description beside it, print the figures.

    Raises ValueError or OSError, and leaves nothing behind, for a source, images, a detector or an output that cannot
    be used.
    """
    described = config.out.with_name(f"{config.out.stem}.info.json")
    for path in (config.out, described):
        check_output_file(path, overwrite=config.overwrite)
    images = _from_store(config) if config.source.is_dir() else _from_annotations(config)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    detector = PersonDetector(config.detector, device)
    began = time.monotonic()
    results = _results(config, images, detector, side_by_side=machine.has_core_beside(device))
    seconds = time.monotonic() - began
    figures = _figures(results, images.truth)
    text = json.dumps(results, separators=(",", ":")) + "\n"
    done = Detected(results, figures, sha256_bytes(text.encode()))
    write_text(config.out, text)
    write_json(described, _description(config, images, done, seconds))
    _tell(config, images, done, seconds)
    return done


def _figures(results: list[dict[str, Any]], known: Truth) -> dict[str, float]:
    """See :func:`box_figures`; none where nobody is known to be in the images."""
    if known.crowd.all():
        return {}
    return box_figures(results, known) if results else dict.fromkeys(_FIGURES, 0.0)


def _from_annotations(config: DetectConfig) -> ImageSet:
    if config.images is None:
        raise ValueError(f"{config.source} is a file of annotations: say where its images are with images=FOLDER")
    document = read_json(config.source)
    if isinstance(document, dict) and "images" in document:
        # COCO's lists of test images say who is looked for, and not who is there.
        document = {"annotations": [], **document}
    content = parse_coco(document, config.source, None, config.categories, joints=False)
    for remark in (*content.remarks, *content.unused_images(config.source.name)):
        console.warn(remark)
    try:
        known = truth_of(content)
    except ValueError as error:
        raise ValueError(f"{config.source}: {error}") from error
    for remark in _odd_truth(known, {image.image_id: (image.width, image.height) for image in content.images}):
        console.warn(f"{config.source.name}: {remark}")
    names = {image.image_id: image.file_name for image in content.images}
    folder = _folder(str(config.images))
    found = _located(folder, names, skip_missing=config.skip_unreadable)
    return ImageSet(folder, found, config.orientation == "upright", known, min(content.category_ids))


def _odd_truth(known: Truth, sizes: dict[int, tuple[int | None, int | None]]) -> list[str]:
    """Remarks on the boxes of the persons who are known to be in the images."""
    people = ~known.crowd
    boxes, image_id = known.box_xywh_px[people], known.image_ids[known.image[people]]
    flat = int((boxes[:, 2:] <= 0).any(axis=1).sum())
    lost = [f"{flat} of {len(boxes)} persons have boxes without width or height: no box can find them"] if flat else []
    return lost + odd_boxes(boxes, image_id, sizes)


def _located(folder: ImageFolder, names: dict[int, str], *, skip_missing: bool) -> dict[int, str]:
    """Names that the images have in the folder, by their ids; ValueError where some are missing and may not be."""
    wanted = list(names.values())
    sizes = dict(zip(wanted, folder.sizes(wanted), strict=True))
    spelled = folder.respelled(sizes)
    missing = [name for name, size in sizes.items() if size < 0 and name not in spelled]
    if missing and not skip_missing:
        near = folder.near(missing)
        may_be = f"; {shown(near[0])} may be {shown(near[1])}" if near else ""
        raise ValueError(
            f"{len(missing)} of {len(sizes)} images are not in {folder.location}, or lead out of it (the first: "
            f"{shown(missing[0])}{may_be}); give the folder that file_name is relative to, or leave out what cannot be "
            "read with skip_unreadable=true"
        )
    return {image_id: spelled.get(name, name) for image_id, name in names.items()}


def _from_store(config: DetectConfig) -> ImageSet:
    store = CropStore.open(config.source)
    sources = store.manifest.sources
    if len(sources) > 1:
        names = ", ".join(source.annotations for source in sources)
        raise ValueError(
            f"{config.source} was prepared from {len(sources)} sources ({names}), and detections belong to one: give "
            "one of these files as the source, and images=FOLDER"
        )
    rows = store.table(IMAGES).select(["image_id", "file_name"]).to_pylist()
    known = store.ground_truth()
    ids = known.annotations.column("category_id").to_pylist()
    folder = _folder(str(config.images or sources[0].images))
    images = {row["image_id"]: row["file_name"] for row in rows}
    return ImageSet(
        folder,
        _located(folder, images, skip_missing=config.skip_unreadable),
        sources[0].orientation == "upright",
        truth(known),
        min(ids, default=1),
    )


def _folder(location: str) -> ImageFolder:
    folder = ImageFolder(location)
    folder.check()
    return folder


def _results(
    config: DetectConfig, images: ImageSet, detector: PersonDetector, *, side_by_side: bool
) -> list[dict[str, Any]]:
    results: list[dict[str, Any]] = []
    unreadable = tagged = 0
    pictures = ahead(_pictures(images), 2, side_by_side=side_by_side)
    with console.progress("detecting", len(images.names), unit="pictures") as advance, closing(pictures):
        for together in in_batches(pictures, _pixels, detector.batch_size):
            advance(len(together))
            tagged += sum(is_tagged for _, _, is_tagged in together)
            [(image_id, first, _), *_] = together
            if isinstance(first, str):
                if not config.skip_unreadable:
                    raise ValueError(f"{first}; mend it, or leave out all such with skip_unreadable=true")
                unreadable += 1
                console.warn(first)
                continue
            readable = [picture for _, picture, _ in together if not isinstance(picture, str)]
            for (image_id, _, _), found in zip(together, detector.together(readable), strict=True):
                results += _entries(found, image_id, images.category_id)
    if unreadable == len(images.names):
        raise ValueError(f"none of the {unreadable} images of {config.source} can be read; nothing was written")
    if unreadable:
        console.warn(f"{unreadable} of {len(images.names)} images cannot be read: their persons count as not found")
    tell_orientation(tagged, len(images.names), upright=images.upright)
    return results


_Item = tuple[int, NDArray[np.uint8] | str, bool]
"""An image's id; its pixels (h, w, 3) RGB, or what is wrong with it; whether its file has an orientation tag."""


def _pixels(item: _Item) -> NDArray[np.uint8] | None:
    return None if isinstance(item[1], str) else item[1]


def _entries(found: Boxes, image_id: int, category_id: int) -> list[dict[str, Any]]:
    return [
        {
            "image_id": image_id, "category_id": category_id,
            "bbox": [round(value, 3) for value in box], "score": round(score, 6),
        }
        for box, score in zip(found.xywh_px.tolist(), found.scores.tolist(), strict=True)
    ]  # fmt: skip


def _pictures(images: ImageSet) -> Generator[_Item]:
    for image_id, name in images.names.items():
        try:
            data = images.folder.read(name)
            image = decode_image(data, upright=images.upright)
        except ImageProblemError as problem:
            yield image_id, f"image {name} {problem.detail}", False
        else:
            yield image_id, rgb_of(image), orientation_of(data) != 1


def _description(config: DetectConfig, images: ImageSet, done: Detected, seconds: float) -> dict[str, Any]:
    from torchvision import __version__ as torchvision_version  # type: ignore[import-untyped]

    weights = config.detector.weights
    source = config.source / "manifest.json" if config.source.is_dir() else config.source
    return {
        "detections": config.out.name,
        "sha256": done.sha256,
        "boxes": len(done.results),
        "images": len(images.names),
        "figures": done.figures,
        "detector": config.detector.model_dump(mode="json"),
        "weights_sha256": sha256_file(weights) if isinstance(weights, Path) else None,
        "source": str(config.source),
        "source_sha256": sha256_file(source),
        "image_folder": images.folder.location,
        "torch": torch.__version__,
        "torchvision": torchvision_version,
        "code": code_version(),
        "seconds": seconds,
    }


def _tell(config: DetectConfig, images: ImageSet, done: Detected, seconds: float) -> None:
    if not done.results:
        console.warn("no person was found in any image")
    persons = int((~images.truth.crowd).sum())
    if done.figures:
        console.table(
            ["persons", f"{config.detector.name}, {console.counted(persons, 'true person')}"], _rows(done.figures)
        )
    else:
        console.note(f"{config.source} has no persons: nothing to measure the boxes by")
    found, among = console.counted(len(done.results), "box"), console.counted(len(images.names), "image")
    console.say(f"{found} in {among}, digest {done.sha256[:12]}: {config.out}")
    rate = len(images.names) / seconds if seconds > 0 else 0.0
    console.note(f"{seconds:.1f} s ({rate:.3g} images/s)")


def _rows(figures: dict[str, float]) -> Sequence[tuple[str, str]]:
    # Below 0 there is nobody of that size.
    return [(words, f"{figures[name]:.4f}") for name, words in _FIGURES.items() if figures[name] >= 0]
