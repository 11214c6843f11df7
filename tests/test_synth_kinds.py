"""The kinds of people that `efafnet synth` draws: what each is like, and what its settings change."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

from efafnet.pipelines.synth import dataset, picture, scene
from efafnet.pipelines.synth.backdrop import Image
from efafnet.pipelines.synth.body import Rng
from efafnet.pipelines.synth.census import census, crowd_shares, records_of
from efafnet.pipelines.synth.coco import ImageRecord, image_record
from efafnet.pipelines.synth.dataset import SynthConfig
from efafnet.pipelines.synth.figure import Surface
from efafnet.pipelines.synth.kinds import KINDS, Kind, People
from efafnet.pipelines.synth.picture import Label
from efafnet.pipelines.synth.raster import Depth
from efafnet.pipelines.synth.scene import Recipe, draw_scene
from efafnet.pipelines.synth.shading import Layer
from efafnet.pipelines.synth.solids import Screen
from efafnet.pipelines.synth.textures import bank
from efafnet.platform.configuration import apply_overrides, resolve


def _config(out: Path, *overrides: str) -> SynthConfig:
    return resolve(SynthConfig, apply_overrides({"out": str(out)}, list(overrides)), "synth")


def test_each_kind_is_what_it_is_named_for() -> None:
    """Against COCO's shares over 1,354 persons, as docs/data.md has them; about 200 people are drawn of each kind."""
    clear, coco, crowd = (census(_drawn(kind, pictures)) for kind, pictures in KIND_PICTURES.items())
    for name, published, slack in (
        ("box touches the border", 0.30, 0.10),
        ("cut at the bottom", 0.10, 0.07),
        ("whole and hardly hidden", 0.28, 0.07),
        ("joints visible", 0.56, 0.08),
        ("joints hidden", 0.08, 0.03),
        ("joints unlabelled", 0.36, 0.07),
    ):
        assert coco[name] == pytest.approx(published, abs=slack), name
    # Bodies fill their boxes a little less than COCO's .53, whose outlines also hold what people carry.
    assert 0.48 < coco["area / box, median"] < 0.56
    assert 0.53 < coco["√area / crop width, median"] < 0.60
    # In two small samples of COCO, 154 persons, they are 22 and 42 % of all.
    assert 0.12 < coco["at most 5 labelled joints"] < 0.27
    assert 0.28 < coco["6 to 11 labelled joints"] < 0.47
    assert clear["whole and hardly hidden"] > coco["whole and hardly hidden"] + 0.05
    assert clear["crowd index, mean"] < 0.05
    # CrowdPose draws its pictures evenly over the index from 0 to 1.
    assert 0.3 < crowd["crowd index, mean"] < 0.7
    shares = crowd_shares(_drawn("crowd", KIND_PICTURES["crowd"]))
    assert sum(shares) == pytest.approx(1)
    assert min(shares[0], shares[1], shares[2], shares[3] + shares[4]) > 0.08


KIND_PICTURES: dict[People, int] = {"clear": 130, "coco": 105, "crowd": 50}


@cache
def _drawn(kind: People, pictures: int) -> list[ImageRecord]:
    return _records(KINDS[kind], pictures)


def _records(kind: Kind, pictures: int) -> list[ImageRecord]:
    found = (_labels(kind, (3, index)) for index in range(pictures))
    return [image_record(index, "x.jpg", 320, 240, labels) for index, labels in enumerate(found)]


def _scenes(kind: Kind, count: int) -> list[list[Label]]:
    return [_labels(kind, (5, index)) for index in range(count)]


def _labels(kind: Kind, seed: tuple[int, int]) -> list[Label]:
    """Labels of a picture that nobody paints, which takes half as long: they are of shapes alone, as a test says."""
    with mock.patch.object(picture, "shade", _outlined), mock.patch.object(scene, "paint_backdrop", _blank):
        recipe = Recipe(320, 240, replace(kind, photographic=False))
        return draw_scene(np.random.default_rng(seed), recipe, bank(3))[1]


def _outlined(depth: Depth, screen: Screen, *given: Any) -> Layer:
    """Where a thing shows, in black."""
    n, (rows, columns) = depth.oversampling, depth.solid.shape
    own = np.where(depth.solid < 0, False, screen.tags[depth.solid, 0] != Surface.THING)
    covered, owned = (
        samples.reshape(rows // n, n, columns // n, n).mean(axis=(1, 3), dtype=np.float32)
        for samples in (depth.solid >= 0, own)
    )
    y, x = covered.nonzero()
    pixels, share = (y + depth.top) * given[-1] + x + depth.left, covered[y, x]
    return Layer(pixels, np.zeros((len(pixels), 3), dtype=np.float32), share, owned[y, x] >= 0.5 * share)


def _blank(rng: Rng, width: int, height: int, *given: Any, busy: bool) -> Image:
    del rng, given, busy
    return np.zeros((height, width, 3), dtype=np.uint8)


def test_a_setting_of_one_s_own_takes_the_place_of_the_kind_s(tmp_path: Path) -> None:
    kind = _config(tmp_path, "people=clear", "occlusion=0.7", "people_per_image=3").recipe.kind
    assert (kind.fewest, kind.most, kind.occlusion) == (3, 3, 0.7)
    assert kind.close_ups == KINDS["clear"].close_ups == 0.12
    assert _config(tmp_path, "people=clear", "occlusion=0").recipe.kind.occlusion == 0
    # Whom one sees across a table is near and half hidden: who asks for something else of either gets it.
    assert _config(tmp_path).recipe.kind.across == KINDS["coco"].across > 0.2
    for word in ("occlusion=0", "close_ups=0"):
        assert _config(tmp_path, word).recipe.kind.across == 0


def test_of_people_who_are_cut_off_less_than_half_of_the_width_shows() -> None:
    alone = replace(KINDS["coco"], fewest=1, most=1, occlusion=0.0, across=0.0, distant_crowds=0.0, cut_off=1.0)
    labels = [label for labels in _scenes(alone, 25) for label in labels]
    boxes = [label.box_xywh_px for label in labels]
    sides = [(x <= 1, x + w >= 319) for x, _, w, _ in boxes]
    assert len(boxes) > 20
    # All are cut, about half of them on either side.
    assert all(left != right for left, right in sides)
    assert 5 < sum(left for left, _ in sides) < len(sides) - 5
    whole = [label for labels in _scenes(replace(alone, cut_off=0.0), 25) for label in labels]
    few, many = (np.median([(label.keypoints[:, 2] > 0).sum() for label in found]) for found in (labels, whole))
    assert few <= 6
    assert many >= 12
    narrow, wide = (
        np.median([label.box_xywh_px[2] / label.box_xywh_px[3] for label in found]) for found in (labels, whole)
    )
    assert narrow < 0.6 * wide


def test_people_who_fit_are_framed_from_their_hands_to_their_feet() -> None:
    plain = replace(KINDS["coco"], most=2, occlusion=0.0, across=0.0, distant_crowds=0.0, cut_off=0.0, at_sides=1.0)
    touch = {}
    for framed in (False, True):
        boxes = [label.box_xywh_px for labels in _scenes(replace(plain, framed=framed), 25) for label in labels]
        touch[framed] = np.mean([x <= 1 or y <= 1 or x + w >= 319 or y + h >= 239 for x, y, w, h in boxes])
    assert touch[True] < touch[False] - 0.1


UNCHANGED: tuple[tuple[People, int, list[tuple[int, int, int, int]]], ...] = (
    ("clear", 0, [(33, 0, 48, 67), (161, 6, 124, 234)]),
    ("clear", 2, [(53, 71, 66, 159), (174, 3, 81, 226)]),
    ("crowd", 0, [
        (30, 52, 22, 78), (33, 65, 49, 77), (100, 86, 52, 89), (142, 32, 60, 168), (169, 27, 71, 213),
        (209, 0, 111, 240),
    ]),
    ("crowd", 1, [(217, 32, 86, 143), (154, 0, 107, 234), (130, 67, 51, 105), (239, 7, 81, 201)]),
)  # fmt: skip
"""Boxes as the code drew them that knew neither frames nor weights of poses: kind, seed, x, y, width, height in px."""


def test_clear_and_crowd_are_drawn_as_before() -> None:
    """One random number more or less, and these were other people altogether."""
    for kind, index, boxes in UNCHANGED:
        _, labels = draw_scene(np.random.default_rng(index), Recipe(320, 240, KINDS[kind]), bank(0))
        found = [label.box_xywh_px for label in labels]
        np.testing.assert_allclose(found, boxes, atol=1.0, err_msg=f"{kind} {index}")


def test_colours_backgrounds_and_exposures_change_no_label() -> None:
    for index in range(4):
        plain, photographic = (
            draw_scene(
                np.random.default_rng((6, index)),
                Recipe(320, 240, replace(KINDS["coco"], photographic=photographic)),
                bank(3),
            )
            for photographic in (False, True)
        )
        assert np.abs(plain[0].astype(int) - photographic[0].astype(int)).mean() > 10
        for others in (photographic[1], _labels(KINDS["coco"], (6, index))):
            assert [label.runs for label in plain[1]] == [label.runs for label in others]
            for one, other in zip(plain[1], others, strict=True):
                np.testing.assert_array_equal(one.keypoints, other.keypoints)


def test_people_seen_across_a_table_are_large_and_show_no_knees() -> None:
    plain = replace(KINDS["coco"], fewest=1, most=1, occlusion=0.0, across=0.0, distant_crowds=0.0, cut_off=0.0)
    found = {}
    for across in (0.0, 1.0):
        labels = [label for labels in _scenes(replace(plain, across=across), 25) for label in labels]
        knees = np.mean([label.keypoints[13:15, 2] > 0 for label in labels])
        shoulders = np.mean([label.keypoints[5:7, 2] > 0 for label in labels])
        found[across] = (knees, shoulders, np.median([label.box_xywh_px[2] for label in labels]))
    assert found[1.0][0] < found[0.0][0] - 0.4
    assert found[1.0][1] > 0.75
    assert found[1.0][2] > 1.3 * found[0.0][2]


def test_the_digest_names_what_is_drawn_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = _config(tmp_path / "a", "people=clear").digest()
    assert _config(tmp_path / "b", "people=clear", "workers=3", "overwrite=true").digest() == first
    assert _config(tmp_path / "a", "people=coco").digest() != first
    assert _config(tmp_path / "a", "people=clear", "seed=1").digest() != first
    monkeypatch.setattr(dataset, "drawing_digest", lambda: "another version")
    assert _config(tmp_path / "a", "people=clear").digest() != first


def test_a_census_worked_out_by_hand() -> None:
    def person(box: list[float], area: float, flags: str, **more: Any) -> dict[str, Any]:
        # The right eye, joint 2, lies 3 px beside the left one and 4 below it.
        at = [(box[0] + 1 + 3 * (joint == 2), box[1] + 1 + 4 * (joint == 2)) for joint in range(17)]
        keypoints = [value for (x, y), flag in zip(at, flags, strict=True) for value in (x, y, int(flag))]
        labelled = sum(flag != "0" for flag in flags)
        return {"bbox": box, "area": area, "keypoints": keypoints, "num_keypoints": labelled, "image_id": 7, **more}

    document = {
        "images": [{"id": 7, "width": 100, "height": 80}],
        "annotations": [
            # Whole: 13 joints above the knees, one of them hidden. The crop is 1.25 * 3/4 of its height wide: 37.5.
            person([10.0, 10.0, 20.0, 40.0], 400.0, "2" * 12 + "1" + "0" * 4),
            # Cut at the right and at the bottom; wider than 3:4, so its crop is 1.25 * 60 = 75 wide. One knee.
            person([40.0, 50.0, 60.0, 30.0], 900.0, "2" * 4 + "1" * 3 + "0" * 6 + "1" + "0" * 3),
            # Neither counts: nothing labelled, and a crowd.
            person([0.0, 0.0, 9.0, 9.0], 50.0, "0" * 17),
            person([0.0, 0.0, 90.0, 80.0], 50.0, "2" * 17, iscrowd=1),
        ],
    }
    found = census(records_of(document))
    assert found == pytest.approx({
        "persons": 2, "box touches the border": 0.5, "cut at the bottom": 0.5, "whole and hardly hidden": 0.5,
        "area / box, median": 0.5, "√area / crop width, median": (20 / 37.5 + 30 / 75) / 2,
        # Both have their eyes 5 px apart.
        "eyes apart / crop width, median": (5 / 37.5 + 5 / 75) / 2,
        "eyes apart / crop width, upper tenth": 5 / 75 + 0.9 * (5 / 37.5 - 5 / 75), "upper body alone": 0.5,
        "joints visible": 16 / 34, "joints hidden": 5 / 34, "joints unlabelled": 13 / 34,
        "labelled joints of a person": 10.5, "at most 5 labelled joints": 0.0, "6 to 11 labelled joints": 0.5,
        "crowd index, mean": 0.0,
    })  # fmt: skip
    assert crowd_shares(records_of(document)) == [1, 0, 0, 0, 0]


def test_crowding_and_the_number_of_people_raise_the_crowd_index(tmp_path: Path) -> None:
    index = {}
    for crowding in (0.0, 1.0):
        kind = _config(tmp_path, "people_per_image=4-5", f"crowding={crowding}").recipe.kind
        index[crowding] = float(np.mean([record.image["crowdIndex"] for record in _records(kind, 20)]))
    assert index[1.0] > 1.5 * index[0.0]
    # CrowdPose calls images hard from .8, easy below .2 (in its tool).
    assert index[1.0] > 0.35


def test_things_in_front_hide_joints(tmp_path: Path) -> None:
    visible, labelled = {}, {}
    for occlusion in (0.0, 1.0):
        records = _records(_config(tmp_path, f"occlusion={occlusion}").recipe.kind, 28)
        people = [person for record in records for person in record.annotations]
        v = np.array([p["keypoints"][2::3] for p in people if p["num_keypoints"]])
        visible[occlusion] = float((v == 2).mean())
        labelled[occlusion] = (v > 0).mean(axis=0)
    assert visible[1.0] < visible[0.0] - 0.05
    # Mostly counters, tables, hedges and cars: from the waist or the chest down.
    nose, knees, ankles = 0, [13, 14], [15, 16]
    assert labelled[1.0][nose] > labelled[0.0][nose] - 0.15
    assert labelled[1.0][knees].mean() < labelled[0.0][knees].mean() - 0.25
    assert labelled[1.0][ankles].mean() < labelled[0.0][ankles].mean() - 0.3
