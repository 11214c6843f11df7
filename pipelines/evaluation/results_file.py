"""Files that `score` reads: results, annotations of each data set, a crop store as ground truth."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from efafnet.models.skeleton import MPII_16, Skeleton
from efafnet.pipelines.crops.annotation_sources import named_skeleton
from efafnet.pipelines.crops.store import CropStore
from efafnet.pipelines.evaluation.columns import Truth, truth, truth_of
from efafnet.pipelines.evaluation.mpii import head_size
from efafnet.pipelines.formats.annotations import AREA_OF_BOX, Annotations
from efafnet.pipelines.formats.coco import parse_coco
from efafnet.pipelines.formats.files import read_json
from efafnet.pipelines.formats.layouts import looks_like
from efafnet.pipelines.formats.plausibility import plausibility_of
from efafnet.pipelines.formats.values import shown
from efafnet.platform import console

ScoredAs = Literal["coco", "crowdpose", "mpii"]
DataFormat = Literal["auto", ScoredAs]


@dataclass(frozen=True)
class Reference:
    """Ground truth and how its data set is scored."""

    truth: Truth
    format: ScoredAs
    head_size_px: dict[int, float] = field(default_factory=dict)
    """Head size of each annotation that has one (MPII)."""

    @property
    def by_person(self) -> bool:
        """Whether each annotated person needs a result of its own, duplicate or not, as PCKh asks."""
        return self.format == "mpii"


def read_results(path: Path) -> list[dict[str, Any]]:
    """A list of COCO results; ValueError for another layout, an empty list, or no file."""
    content = read_json(path, "results file")
    if isinstance(content, dict) and "annotations" in content:
        raise ValueError(f"{path} holds annotations, not results; usage: efafnet score PREDICTIONS ANNOTATIONS")
    if not isinstance(content, list):
        raise ValueError(
            f"{path} is not in COCO's results format: a list of objects with image_id, category_id, …"
            f"{looks_like(content)}"
        )
    if (odd := next((n for n, entry in enumerate(content) if not isinstance(entry, dict)), None)) is not None:
        raise ValueError(
            f"{path} is not in COCO's results format: entry {odd} is {shown(content[odd])}, not an object with "
            "image_id, category_id, …"
        )
    if not content:
        raise ValueError(f"{path} holds no results: there is nothing to score")
    return content


def read_reference(
    path: Path, wanted: DataFormat = "auto", skeleton: str = "auto", categories: Sequence[str] = ()
) -> Reference:
    """Ground truth from a COCO or CrowdPose JSON, a crop store's directory, or MPII's ``gt_valid.mat``.

    ``skeleton`` is one that ``named_skeleton`` knows, ``categories`` those of the file that are persons. ``auto``
    formats are told by the joints (14 of CrowdPose with crowd indices, 16 of MPII, else COCO).
    """
    if path.suffix == ".mat":
        return _mpii_mat(path)
    known = named_skeleton(skeleton)
    if path.is_dir():
        ground_truth = CropStore.open(path, expect_skeleton=known).ground_truth()
        reference = truth(ground_truth)
        heads = {a["id"]: a["head_size"] for a in ground_truth.to_coco()["annotations"] if "head_size" in a}
    else:
        content = _annotations(path, known, categories)
        reference = _naming(path, lambda: truth_of(content))
        heads = {a.annotation_id: a.head_size for a in content.annotations if a.head_size is not None}
    data_format = _format_of(reference, heads, path, wanted)
    if data_format == "crowdpose":
        reference = _with_areas_of_boxes(reference, path)
    return Reference(reference, data_format, heads)


def _with_areas_of_boxes(reference: Truth, path: Path) -> Truth:
    """CrowdPose's tool takes .53 · height · width of the box for a person's area, also where a file has areas."""
    areas = reference.box_xywh_px[:, 3] * reference.box_xywh_px[:, 2] * AREA_OF_BOX
    others = int((~np.isclose(areas, reference.area_px2)).sum())
    if others:
        console.note(
            f"{path}: the area of {others} annotations is not used; CrowdPose's tool takes 0.53 of the box "
            "(format=coco uses it)"
        )
    return replace(reference, area_px2=areas)


@lru_cache(maxsize=2)
def reference_of(path: Path, digest: str) -> Reference:  # noqa: ARG001 (a store that changed is another one)
    """Ground truth of a store, read once per process."""
    return read_reference(path)


def _annotations(path: Path, skeleton: Skeleton | None, categories: Sequence[str]) -> Annotations:
    """An annotation file, with what is worth knowing about it told."""
    content = parse_coco(read_json(path), path, skeleton, categories, named=False)
    for remark in (*content.remarks, *content.unused_images(path.name), *plausibility_of(content, path.name)):
        console.warn(remark)
    return content


def _naming(path: Path, read: Callable[[], Truth]) -> Truth:
    try:
        return read()
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _format_of(reference: Truth, heads: Mapping[int, float], path: Path, wanted: DataFormat) -> ScoredAs:
    if wanted == "mpii" and not heads:
        raise ValueError(f"{path} holds no head sizes, so no PCKh; prepare from MPII's original release")
    if wanted != "auto":
        return wanted
    if reference.skeleton.joints == MPII_16.joints:
        if not heads:
            console.warn(f"{path} holds no head sizes, so no PCKh; OKS AP by assumed sigmas instead")
        return "mpii" if heads else "coco"
    if reference.skeleton.name != "crowdpose14":
        return "coco"
    without = int(np.isnan(reference.crowd_index).sum())
    if without:
        console.warn(
            f"{path}: {without} of {len(reference.crowd_index)} images have no crowdIndex: scored as COCO, by areas as "
            "annotated and without easy, medium and hard; format=crowdpose needs one for each image"
        )
    return "coco" if without else "crowdpose"


def _mpii_mat(path: Path) -> Reference:
    """The validation ground truth distributed with simple baselines, ``gt_valid.mat``; its coordinates count from 1."""
    import scipy.io
    from scipy.io.matlab import MatReadError

    try:
        content = scipy.io.loadmat(str(path))
        true_px = np.moveaxis(content["pos_gt_src"], -1, 0).astype(np.float64) - 1.0
        missing = content["jnt_missing"].T
        corners = content["headboxes_src"].astype(np.float64)
    except (OSError, KeyError, ValueError, NotImplementedError, MatReadError) as error:
        raise ValueError(f"{path} is not MPII's gt_valid.mat (pos_gt_src, jnt_missing, …): {error}") from error
    sizes = head_size(corners.transpose(2, 0, 1).reshape(-1, 4))
    num = len(true_px)
    visibility = (missing == 0).astype(np.int64)
    reference = Truth(
        skeleton=MPII_16,
        image_ids=np.arange(num),
        image=np.arange(num),
        annotation_id=np.arange(num),
        joints_px=true_px,
        visibility=visibility,
        box_xywh_px=np.zeros((num, 4)),
        area_px2=sizes**2,
        crowd=np.zeros(num, bool),
        ignored=~(visibility > 0).any(axis=1),
        category_id=1,
        crowd_index=np.full(num, np.nan),
    )
    return Reference(reference, "mpii", dict(enumerate(sizes.tolist())))
