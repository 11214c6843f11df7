"""The best and the worst persons of an evaluation as pictures: prediction beside annotation, sorted by OKS.

Legend: N predicted persons, G true persons, K joints.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from efafnet.models.settings import InputSize
from efafnet.pipelines.crops import geometry
from efafnet.pipelines.crops.decode import CropDecoder
from efafnet.pipelines.crops.groups import COLUMNS, group_from_table
from efafnet.pipelines.crops.store import CropStore
from efafnet.pipelines.drawing.poses import (
    ANNOTATED,
    Picture,
    Strength,
    draw_box,
    draw_mistakes,
    draw_person,
    write_picture,
)
from efafnet.pipelines.drawing.sheets import Cell, contact_sheet
from efafnet.pipelines.drawing.text import COMPARED
from efafnet.pipelines.evaluation.columns import Truth
from efafnet.pipelines.evaluation.errors_taxonomy import NEAR_FROM, similarity_to
from efafnet.pipelines.evaluation.matching import NOBODY, oks_of_persons
from efafnet.pipelines.evaluation.predictions import Predictions

_HEIGHT_PX = 320


def write_galleries(
    folder: Path,
    store: CropStore,
    predictions: Predictions,
    truth: Truth,
    *,
    count: int,
    input_size: InputSize,
    padding: float,
    sure: NDArray[np.bool_],
) -> list[Path]:
    """Write ``best.jpg`` and ``worst.jpg`` with up to ``count`` persons each into ``folder``; the paths written.

    Joints that are not ``sure`` (N, K) are drawn hollow. A person compared with nobody has no place in either.
    """
    oks, person = oks_of_persons(predictions, truth, annotated_boxes=store.has_annotated_boxes)
    ranked = _best_of_each(oks, person)
    # One joint is soon found, and one that is missed teaches little: persons that show at least half of theirs.
    whole = ranked[(truth.visibility[person[ranked]] > 0).mean(axis=1) >= 0.5]
    pool = whole if len(whole) else ranked
    written = []
    for name, chosen in (("best", pool[::-1][:count]), ("worst", pool[:count])) if len(pool) else ():
        files = store.rows(["file_name"], predictions.rows[chosen].tolist())["file_name"].to_pylist()
        cells = [
            Cell(
                (prediction, annotation),
                caption=f"OKS {oks[n]:.3f}   {file_name}",
                detail=f"image {predictions.image_id[n]}, person {predictions.person_id[n]}",
            )
            for n, file_name, (prediction, annotation) in zip(
                chosen,
                files,
                _pairs_of_pictures(store, predictions, truth, person, chosen, input_size, padding, sure),
                strict=True,
            )
        ]
        title = _title(name, len(cells), len(pool), len(ranked))
        write_picture(contact_sheet(cells, title, COMPARED), folder / f"{name}.jpg")
        written.append(folder / f"{name}.jpg")
    return written


def _title(name: str, shown: int, pool: int, persons: int) -> str:
    half = "" if pool == persons else f" with at least half of the joints annotated ({persons} in all)"
    return f"{name} {shown} of {pool} persons{half}"


def _best_of_each(oks: NDArray[np.float64], person: NDArray[np.int64]) -> NDArray[np.intp]:
    """The best prediction of every true person, by rising OKS: a detector's spare boxes are no persons."""
    order = np.lexsort((-oks, person))
    order = order[person[order] != NOBODY]
    first = order[np.unique(person[order], return_index=True)[1]]
    return np.asarray(first[np.argsort(oks[first], kind="stable")])


def _pairs_of_pictures(
    store: CropStore,
    predictions: Predictions,
    truth: Truth,
    person: NDArray[np.int64],
    chosen: NDArray[np.intp],
    input_size: InputSize,
    padding: float,
    sure: NDArray[np.bool_],
) -> list[tuple[Picture, Picture]]:
    views = persons_in_view(store, predictions.rows[chosen], input_size.width / input_size.height, padding)
    wrong = similarity_to(truth, predictions.joints_px[chosen], person[chosen], mirrored=False) < NEAR_FROM
    wrong &= truth.visibility[person[chosen]] > 0
    pairs = []
    for n, mistakes, (picture, to_view) in zip(chosen, wrong, views, strict=True):
        predicted = geometry.apply_affine(to_view, predictions.joints_px[n])
        true = geometry.apply_affine(to_view, truth.joints_px[person[n]])
        found: list[Strength] = ["sure" if s else "unsure" for s in sure[n]]
        seen = [ANNOTATED[v] for v in truth.visibility[person[n]]]
        box = predictions.box_xywh_px[n]
        picture = draw_box(picture, geometry.apply_affine(to_view, np.stack([box[:2], box[:2] + box[2:]])))
        drawn = draw_mistakes(
            draw_person(picture, predicted, found, store.skeleton, guesses=True), predicted, true, mistakes
        )
        pairs.append((drawn, draw_person(picture, true, seen, store.skeleton)))
    return pairs


def persons_in_view(
    store: CropStore, rows: NDArray[np.int64], aspect: float, padding: float
) -> list[tuple[Picture, NDArray[np.float64]]]:
    """Pictures (320, W, 3) of store rows as the network's region shows them, each with its affine from image pixels."""
    size = InputSize(height=_HEIGHT_PX, width=max(32, round(_HEIGHT_PX * aspect / 32) * 32))
    decoder = CropDecoder(store.manifest.encoding)
    views: list[tuple[Picture, NDArray[np.float64]]] = []
    persons = group_from_table(store.rows(COLUMNS, rows.tolist()))
    for n in range(len(rows)):
        to_image = geometry.view_of_boxes(persons.boxes_xywh[n], size, padding)
        to_crop = geometry.compose_affine(geometry.invert_affine(persons.crop_to_image[n]), to_image)
        planes = np.empty((3, size.height, size.width), np.uint8)
        persons.warp(n, decoder, to_crop, planes)
        views.append((np.ascontiguousarray(planes.transpose(1, 2, 0)), geometry.invert_affine(to_image)))
    return views
