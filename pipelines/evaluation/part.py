"""Scoring on a part of the annotated images: which part, what lies outside it, how much of the whole has results."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from efafnet.pipelines.evaluation.columns import Truth
from efafnet.pipelines.formats.values import integer, shown
from efafnet.platform import console

PREDICTED = "predicted"
ALL = "all"


def chosen_images(wanted: str, results: Sequence[Mapping[str, Any]], truth: Truth) -> NDArray[np.int64]:
    """Ids of the annotated images to score on: ``all``, those with a result (``predicted``), or those a file lists.

    Raises ValueError for a file that lists none of the annotated images, or something else than images.
    """
    if wanted == ALL:
        return truth.image_ids
    if wanted == PREDICTED:
        found = images_of(results)
        chosen = np.intersect1d(truth.image_ids, found)
        if not len(chosen):
            first = f"the first is on image {found[0]}, " if len(found) else ""
            raise ValueError(
                f"images = {PREDICTED}: no result lies on one of the {len(truth.image_ids)} images of the annotations "
                f"({first}theirs begin with {truth.image_ids[0]}); give those that belong together"
            )
        return chosen
    path = Path(wanted).expanduser()
    listed = _listed(path, truth)
    chosen = np.intersect1d(truth.image_ids, listed)
    if not len(chosen):
        raise ValueError(
            f"images = {wanted}: none of the {len(listed)} images it lists is among the {len(truth.image_ids)} of the "
            "annotations"
        )
    if len(chosen) < len(listed):
        console.warn(f"images = {wanted}: {len(listed) - len(chosen)} of {len(listed)} are not among the annotations'")
    return chosen


def images_of(results: Sequence[Mapping[str, Any]]) -> NDArray[np.int64]:
    """The image ids that results name, each once; entries without one are left to the reader of results."""
    ids = (integer(entry.get("image_id")) for entry in results if isinstance(entry, Mapping))
    return np.unique(np.array([i for i in ids if i is not None], np.int64))


def part_of(truth: Truth, image_ids: NDArray[np.int64]) -> Truth:
    """The annotations on the images ``image_ids`` (ascending, all of the truth's)."""
    kept = np.isin(truth.image_ids, image_ids)
    place = np.cumsum(kept) - 1
    on = kept[truth.image]
    return replace(
        truth,
        image_ids=truth.image_ids[kept],
        image=place[truth.image[on]].astype(np.int64),
        annotation_id=truth.annotation_id[on],
        joints_px=truth.joints_px[on],
        visibility=truth.visibility[on],
        box_xywh_px=truth.box_xywh_px[on],
        area_px2=truth.area_px2[on],
        crowd=truth.crowd[on],
        ignored=truth.ignored[on],
        crowd_index=truth.crowd_index[kept],
    )


def within(
    results: Sequence[dict[str, Any]], chosen: NDArray[np.int64], truth: Truth, what: str
) -> list[dict[str, Any]]:
    """Those of ``results`` that are not on annotated images outside the chosen ones; how many are left out is told.

    Raises ValueError where that leaves none.
    """
    outside = set(np.setdiff1d(truth.image_ids, chosen).tolist())
    kept = [entry for entry in results if integer(entry.get("image_id")) not in outside]
    if results and not kept:
        raise ValueError(f"{what}: none of its {len(results)} results lies on the {len(chosen)} images to score")
    if len(kept) < len(results):
        console.note(f"{what}: {len(results) - len(kept)} of {len(results)} results lie on images that are not scored")
    return kept


def tell_coverage(results: Sequence[Mapping[str, Any]], truth: Truth, of: object, remedy: str = "") -> None:
    """Say of which share of the images with persons ``of`` has no result: each of their persons counts as not found."""
    populated = np.unique(truth.image_ids[truth.image[~truth.ignored]])
    without = int((~np.isin(populated, images_of(results))).sum())
    if without:
        console.note(
            f"{of}: {without} of {len(populated)} images with persons have no result, and their persons count as not "
            f"found{remedy}"
        )


def _listed(path: Path, truth: Truth) -> NDArray[np.int64]:
    """Image ids, or names of the truth's images: in a JSON list, in the ``images`` of a COCO file, or one a line."""
    if not path.is_file():
        raise ValueError(f"images = {path}: no such file; it is {ALL}, {PREDICTED}, or a file that lists image ids")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"images = {path}: cannot be read as text ({error})") from error
    try:
        content = json.loads(text)
    except (json.JSONDecodeError, RecursionError):
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        content = text.split() if all(map(str.isdecimal, text.split())) else lines
    if isinstance(content, Mapping):
        content = content.get("images")
    entries = content if isinstance(content, list) else [content]
    ids = []
    for entry in entries:
        value = entry.get("id") if isinstance(entry, Mapping) else entry
        number = integer(value)
        if number is None and truth.names is not None:
            named = truth.names.images.find_from_outside(value)
            number = None if named is None else named.image_id
        if number is None:
            raise ValueError(
                f"images = {path}: {shown(value)} is no image id; the file is a JSON list of ids, a COCO file "
                "with images, or one id a line"
            )
        ids.append(number)
    return np.unique(np.array(ids, np.int64))
