"""Drawn poses: what is where, in which colour, how large, and with which words."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from efafnet.models.skeleton import COCO_17, MPII_16, Skeleton
from efafnet.pipelines.drawing.persons import Pose, draw_poses, readable_scale
from efafnet.pipelines.drawing.poses import (
    LEFT,
    MIDDLE,
    RIGHT,
    WRONG,
    Colour,
    Strength,
    draw_box,
    draw_mistakes,
    draw_person,
    encoded,
    fixed_points,
    side_colours,
    write_picture,
)
from efafnet.pipelines.drawing.sheets import Cell, contact_sheet
from efafnet.pipelines.drawing.text import COMPARED, SIDES, label, shortened, with_footer

NOSE, LEFT_WRIST, RIGHT_WRIST = 0, 9, 10


def _grey() -> NDArray[np.uint8]:
    return np.full((256, 192, 3), 128, np.uint8)


def _strength(**chosen: Strength) -> list[Strength]:
    return [chosen.get(name, "absent") for name in COCO_17.joints]


def _places(**chosen: tuple[float, float]) -> NDArray[np.float64]:
    return np.array([chosen.get(name, (-500.0, -500.0)) for name in COCO_17.joints])


def _near(picture: NDArray[np.uint8], x: int, y: int, colour: Colour, tolerance: int = 12) -> bool:
    return bool(np.abs(picture[y, x].astype(int) - colour).max() < tolerance)


def test_sides_have_their_colours() -> None:
    colours = side_colours(COCO_17)
    assert (colours[LEFT_WRIST], colours[RIGHT_WRIST], colours[NOSE]) == (LEFT, RIGHT, MIDDLE)


def test_sides_are_told_by_every_usual_spelling() -> None:
    names = ("LEye", "eye_r", "hand.L", "RKnee", "pelvis", "left_tail")
    custom = Skeleton(name="x", joints=names, flip_pairs=(), limbs=(), sigmas=(0.1,) * 6, upper_body=())
    assert side_colours(custom) == [LEFT, RIGHT, LEFT, RIGHT, MIDDLE, LEFT]
    # MPII lists the right ankle first: its pairs are (right, left), its names still say who is who.
    assert side_colours(MPII_16)[:2] == [RIGHT, RIGHT]
    assert side_colours(MPII_16)[13] == LEFT


def test_positions_are_converted_to_sixteenths() -> None:
    places = np.array([[1.0, 2.5], [np.nan, np.inf], [-1e9, 0.03125]])
    assert fixed_points(places) == [(16, 40), (-160000, 160000), (-160000, 0)]


def test_joints_are_filled_where_sure_hollow_where_unsure_and_left_out_where_absent() -> None:
    places = _places(left_wrist=(40, 50), right_wrist=(100, 50), nose=(150, 50))
    drawn = draw_person(_grey(), places, _strength(left_wrist="sure", right_wrist="unsure"), COCO_17)
    assert _near(drawn, 40, 50, LEFT)
    assert drawn[50, 100].max() < 60
    assert _near(drawn, 103, 50, RIGHT, tolerance=24)
    assert _near(drawn, 150, 50, (128, 128, 128))


def test_a_limb_joins_present_joints_only_and_has_the_colour_of_its_side() -> None:
    places = _places(left_shoulder=(60, 60), right_shoulder=(140, 60), left_elbow=(60, 140), right_elbow=(140, 140))
    there = {"left_shoulder": "sure", "right_shoulder": "sure", "left_elbow": "sure"}
    drawn = draw_person(_grey(), places, _strength(**there), COCO_17)  # type: ignore[arg-type]
    assert _near(drawn, 60, 100, LEFT)
    assert _near(drawn, 100, 60, MIDDLE)
    assert _near(drawn, 140, 100, (128, 128, 128))


def test_the_picture_given_stays_as_it_was() -> None:
    picture = _grey()
    draw_person(picture, _places(nose=(50, 50)), _strength(nose="sure"), COCO_17)
    draw_box(picture, np.array([[10.0, 10.0], [50.0, 50.0]]))
    assert (picture == 128).all()


def test_positions_outside_the_picture_or_without_a_number_do_no_harm() -> None:
    places = _places(nose=(1e9, -1e9), left_eye=(np.nan, np.nan), right_eye=(50, 50))
    drawn = draw_person(_grey(), places, ["sure"] * 17, COCO_17)
    assert _near(drawn, 50, 50, RIGHT)


def test_a_mistake_points_to_where_the_joint_should_be() -> None:
    predicted, true = _places(nose=(40, 40)), _places(nose=(140, 40))
    wrong = np.zeros(17, bool)
    assert np.array_equal(draw_mistakes(_grey(), predicted, true, wrong), _grey())
    wrong[NOSE] = True
    drawn = draw_mistakes(_grey(), predicted, true, wrong)
    assert _near(drawn, 90, 40, WRONG, tolerance=60)
    assert _near(drawn, 142, 42, WRONG, tolerance=60)


def test_a_sheet_holds_every_person(tmp_path: Path) -> None:
    cells = [Cell((_grey() * 0, _grey() * 0 + 200), f"OKS {n}", "detail") for n in range(5)]
    sheet = contact_sheet(cells, "title", COMPARED, columns=3)
    dark = (sheet.max(axis=2) == 0).sum()
    assert dark == pytest.approx(5 * 256 * 192, rel=0.01)
    assert (sheet == 200).all(axis=2).sum() >= 5 * 256 * 192
    for name in ("sheet.png", "sheet.jpg"):
        write_picture(sheet, tmp_path / name)
        read = cv2.imread(str(tmp_path / name))
        assert read is not None
        assert read.shape == sheet.shape


def test_a_picture_of_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match=r"ends in \.jpg, \.jpeg, \.png; got '\.tif'"):
        encoded(_grey(), ".tif")


# ---- all persons of a picture


def _pose(x: float, y: float, half: float, score: float, identity: int | None = None, sure: float = 0.9) -> Pose:
    """A person whose joints all lie on (x, y), a right one on top; its box ``half`` around."""
    return Pose(
        np.tile([x, y], (17, 1)), np.full(17, sure), np.array([x - half, y - half, 2 * half, 2 * half]), score, identity
    )


def test_small_persons_are_enlarged_as_far_as_a_picture_may_grow() -> None:
    assert readable_scale([], 640, 480) == 1
    assert readable_scale([200.0, 96.0], 640, 480) == 1
    assert readable_scale([30.0] * 3 + [400.0], 640, 480) == 4
    assert readable_scale([40.0], 640, 480) == 3
    # 2560 pixels are the limit.
    assert readable_scale([30.0], 1280, 720) == 2
    assert readable_scale([30.0], 4000, 3000) == 1


def test_an_enlarged_picture_has_its_persons_in_place() -> None:
    image = np.full((60, 80, 3), 90, np.uint8)
    drawn = draw_poses(image, [_pose(20.0, 30.0, 15.0, 0.5)], COCO_17, sure_from=0.2, labels=(), scale="auto")
    assert drawn.shape == (240, 320, 3)
    # The middle of pixel 20 is at 20.5 from the edge: 82 pixels, so 81.5 between two pixels' centres.
    assert _near(drawn, 81, 121, RIGHT)
    assert _near(drawn, 82, 122, RIGHT)
    assert (image == 90).all()


def test_who_has_an_id_has_its_colour_and_its_label() -> None:
    image = np.full((200, 300, 3), 90, np.uint8)
    poses = [_pose(60, 100, 40, 0.5, identity=3), _pose(200, 100, 40, 0.25, identity=4)]
    bare = draw_poses(image, poses, COCO_17, sure_from=0.2, labels=())
    assert tuple(bare[100, 20]) != tuple(bare[100, 160]), "boxes of two persons have one colour"
    drawn = draw_poses(image, poses, COCO_17, sure_from=0.2)
    plate = label("3 0.50", 9, (187, 204, 51))
    high, wide = plate.shape[:2]
    assert np.array_equal(drawn[60 - high : 60, 20 : 20 + wide], plate), "the label stands on its box"
    assert not np.array_equal(label("3 0.50", 9, (187, 204, 51)), label("3 0.51", 9, (187, 204, 51)))


def test_labels_keep_apart_and_inside() -> None:
    image = np.full((100, 100, 3), 90, np.uint8)
    poses = [_pose(50, 50, 45, score, identity=0) for score in (0.9, 0.8)]
    drawn = draw_poses(image, poses, COCO_17, sure_from=0.2)
    best, other = (label(f"0 {score:.2f}", 9, (153, 221, 255)) for score in (0.9, 0.8))
    high, wide = best.shape[:2]
    # Above the box there is no room: the best person's label is moved into the picture, the other one is put below.
    assert np.array_equal(drawn[:high, 5 : 5 + wide], best)
    assert np.array_equal(drawn[100 - high :, 5 : 5 + wide], other)


def test_joints_are_named_at_large_persons_only() -> None:
    image = np.full((300, 300, 3), 90, np.uint8)
    for half, named in ((140.0, True), (60.0, False)):
        pose = _pose(150, 150, half, 0.5)
        plain, words = (
            draw_poses(image, [pose], COCO_17, sure_from=0.2, labels=labels) for labels in ((), ("joints",))
        )
        assert np.array_equal(plain, words) is not named


def test_a_footer_keeps_the_picture_and_says_whose_it_is() -> None:
    whole = with_footer(_grey(), "a.jpg: 2 persons", SIDES)
    assert whole.shape == (256 + 24, 192, 3)
    assert np.array_equal(whole[:256], _grey())
    assert (whole[256:] < 100).any()
    wide = with_footer(np.full((20, 900, 3), 128, np.uint8), "a.jpg", SIDES)
    assert (wide[20:] == LEFT).all(axis=2).sum() > 30, "the legend has room and is not there"


def test_long_names_lose_their_middle() -> None:
    name = "folder/" * 20 + "000000000785.jpg"
    short = shortened(name, 13, 150)
    assert "…" in short
    assert short.endswith("785.jpg")
    assert shortened("a.jpg", 13, 150) == "a.jpg"


def test_names_of_files_with_line_ends_can_be_written() -> None:
    """Pillow lays out no text with a line end where it measures it; Linux takes such names, and bytes that are none."""
    for name in ("a\nb.jpg", "a\udcffb.jpg"):
        assert shortened(name, 13, 150) == "a b.jpg"
        assert with_footer(_grey(), name, ()).shape[0] == _grey().shape[0] + 24
