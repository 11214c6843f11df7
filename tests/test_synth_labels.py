"""Labels of constructed pictures: what is visible, hidden or gone, left and right, areas and boxes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from efafnet.models.skeleton import COCO_17
from efafnet.pipelines.synth.body import sample_body
from efafnet.pipelines.synth.coco import crowd_index, image_record
from efafnet.pipelines.synth.figure import Surface, build_person, joints_of
from efafnet.pipelines.synth.kinematics import JOINT, Stance, articulate
from efafnet.pipelines.synth.outfit import Cloth, Fabric, Outfit, sample_fabric, sample_outfit
from efafnet.pipelines.synth.picture import LEAST_AREA_PX, Label, Picture, person, thing
from efafnet.pipelines.synth.pose import Bone, Pose
from efafnet.pipelines.synth.shading import Light
from efafnet.pipelines.synth.solids import Camera, Frames, Model, see
from efafnet.pipelines.synth.stage import View
from efafnet.pipelines.synth.textures import bank
from efafnet.pipelines.synth.things import Thing, sample_cover

WIDTH, HEIGHT, SCALE = 200, 200, 90.0
FACE = [JOINT[name] for name in ("nose", "left_eye", "right_eye", "left_ear", "right_ear")]
LIMBS = [joint for joint in range(17) if joint not in FACE]


def _stance(yaw: float = 0.0, angles: NDArray[np.float64] | None = None) -> Stance:
    body = replace(sample_body(np.random.default_rng(0)), kind="man", stature=1.75)
    pose = np.zeros((len(Bone), 3)) if angles is None else angles
    pose[[Bone.UPPER_ARM_L, Bone.UPPER_ARM_R], 1] += 25.0
    pose[[Bone.THIGH_L, Bone.THIGH_R], 1] += 8.0
    return articulate(body, Pose("standing", pose, "ground"), yaw)


def _outfit(stance: Stance, **changes: object) -> Outfit:
    drawn = sample_outfit(np.random.default_rng(5), stance.body)
    plain = {
        "hair": "short", "hat": "", "glasses": False, "beard": False, "watch": False, "badge": False, "armband": False,
        "placket": False, "logo": False, "number": False, "strap": False, "backpack": False, "skirt": False,
        "sleeve": 0.5, "hem": 1.9, "socks": 1.0, "parted": False, "loose_top": 1.1, "loose_bottom": 1.1,
        "coat": 0.0,
    }  # fmt: skip
    return replace(drawn, **(plain | changes))  # type: ignore[arg-type]


def _picture(*, sparing: bool = False) -> Picture:
    grey = np.full((HEIGHT, WIDTH, 3), 128, dtype=np.uint8)
    return Picture(grey, Light((0.0, 0.3, 0.95), 0.7, (1.0, 1.0, 1.0)), bank(0), sparing=sparing)


def _add(
    picture: Picture, x: float, yaw: float = 0.0, scale: float = SCALE, stance: Stance | None = None, **outfit: object
) -> int:
    stance = _stance(yaw) if stance is None else stance
    view = View(WIDTH, HEIGHT, horizon=HEIGHT - 15 - 1.2 * scale, eye=1.2, focal=400.0)
    return picture.add(person(stance, _outfit(stance, **outfit), view.aim(x, scale, 0.875)))


def _label(picture: Picture, number: int = 1) -> Label:
    found = picture.label(picture.drawn[number - 1])
    assert found is not None
    return found


def _v(label: Label, *names: str) -> list[int]:
    return [int(label.keypoints[JOINT[name], 2]) for name in names]


def test_everything_shows_of_somebody_who_stands_alone_and_faces_the_camera() -> None:
    picture = _picture()
    _add(picture, 100)
    label = _label(picture)
    assert (label.keypoints[:, 2] == 2).all()
    mask = picture.ids == 1
    assert label.area_px == mask.sum()
    x, y, w, h = label.box_xywh_px
    assert mask[int(y) : int(y + h), int(x) : int(x + w)].sum() == mask.sum()
    # About 1.75 m at 90 px/m, and an area between that of a stick and that of a box.
    assert h == pytest.approx(157, abs=12)
    assert 0.08 * h**2 < label.area_px < 0.5 * w * h


def test_a_coat_closes_the_gap_between_the_thighs_down_to_its_hem_and_hides_no_joint() -> None:
    for coat, at_half, at_knees in ((0.0, 0, 0), (0.8, 1, 0)):
        picture = _picture()
        _add(picture, 100, coat=coat)
        label = _label(picture)
        assert (label.keypoints[:, 2] == 2).all()
        hip, knee = (
            (label.keypoints[JOINT[f"left_{name}"], :2] + label.keypoints[JOINT[f"right_{name}"], :2]) / 2
            for name in ("hip", "knee")
        )
        for share, shows in ((0.6, at_half), (1.0, at_knees)):
            x, y = np.floor(hip + share * (knee - hip) + 0.5).astype(int)
            assert picture.ids[y, x] == shows, (coat, share)


def test_left_and_right_swap_sides_between_front_and_back() -> None:
    for yaw, sign in ((0.0, 1), (np.pi, -1)):
        picture = _picture()
        _add(picture, 100, yaw)
        points = _label(picture).keypoints
        for left, right in COCO_17.flip_pairs[2:]:
            assert points[left, 2] == points[right, 2] == 2
            assert sign * (points[left, 0] - points[right, 0]) > 4


def test_the_face_shows_from_the_front_and_not_from_behind() -> None:
    front, back = _picture(), _picture()
    _add(front, 100, 0.0)
    _add(back, 100, np.pi)
    assert _v(_label(front), "nose", "left_eye", "right_eye", "left_ear", "right_ear") == [2, 2, 2, 2, 2]
    assert _v(_label(back), "nose", "left_eye", "right_eye", "left_ear", "right_ear") == [0, 0, 0, 2, 2]
    assert (_label(back).keypoints[LIMBS, 2] == 2).all()


def test_in_profile_the_far_half_of_the_face_is_not_labelled() -> None:
    picture = _picture()
    _add(picture, 100, np.pi / 2)
    label = _label(picture)
    # Facing the viewer's right, the right side is near.
    assert _v(label, "nose", "right_eye", "right_ear") == [2, 2, 2]
    assert _v(label, "left_eye", "left_ear") == [0, 0]
    # The far shoulder is behind the trunk, but its partner shows: an annotator infers it.
    assert _v(label, "left_shoulder") == [1]
    assert label.keypoints[JOINT["nose"], 0] > label.keypoints[JOINT["right_ear"], 0] + 5


def test_somebody_in_front_hides_exactly_the_joints_inside_their_silhouette() -> None:
    both, behind_alone, front_alone = _picture(), _picture(), _picture()
    _add(both, 92, scale=80.0)
    _add(both, 112, scale=100.0)
    _add(behind_alone, 92, scale=80.0)
    _add(front_alone, 112, scale=100.0)
    behind, front = _label(both, 1), _label(both, 2)
    np.testing.assert_array_equal(front.keypoints, _label(front_alone).keypoints)
    silhouette = front_alone.ids == 1
    np.testing.assert_array_equal(both.ids == 2, silhouette)
    np.testing.assert_array_equal(both.ids == 1, (behind_alone.ids == 1) & ~silhouette)
    truth = _label(behind_alone).keypoints
    column, row = np.floor(truth[:, :2] + 0.5).astype(int).T
    covered = silhouette[row, column]
    assert 3 <= covered.sum() <= 14, "the scene should hide some joints and show some"
    np.testing.assert_array_equal(behind.keypoints[:, 2] == 2, ~covered)
    labelled = behind.keypoints[:, 2] > 0
    np.testing.assert_allclose(behind.keypoints[labelled, :2], truth[labelled, :2])
    assert (behind.keypoints[~labelled] == 0).all()


def test_hidden_joints_are_inferred_only_where_their_limb_shows() -> None:
    # A screen over the lower legs: half of each lower leg shows, so the ankles are inferable.
    for top, expected in ((0.30, 1), (0.62, 0)):
        picture = _picture()
        _add(picture, 100)
        _hide(picture, top)
        label = _label(picture)
        assert _v(label, "left_ankle", "right_ankle") == [expected, expected]
        assert _v(label, "left_hip", "left_shoulder", "nose") == [2, 2, 2]


@pytest.mark.parametrize(("sparing", "knees"), [(False, 1), (True, 0)])
def test_a_hidden_knee_is_labelled_sparingly_only_between_two_limbs_that_show(*, sparing: bool, knees: int) -> None:
    # The screen's edge is above the knees: most of each thigh shows, nothing of the lower legs.
    picture = _picture(sparing=sparing)
    _add(picture, 100)
    _hide(picture, 0.62)
    label = _label(picture)
    assert _v(label, "left_knee", "right_knee") == [knees, knees]
    assert _v(label, "left_hip", "right_hip", "left_elbow", "left_ankle") == [2, 2, 2, 0]


def _hide(picture: Picture, top: float) -> None:
    """Put a screen from the ground up to ``top`` metres in front of everything."""
    model = Model()
    model.box((0, 0, 0.5 * top, 0), (0.5, 0.5 * top, 0.02), (Surface.THING, 0, 0))
    frames = Frames(np.zeros((1, 3)), np.eye(3)[None])
    made = Thing(model, frames, (Fabric((0.2, 0.4, 0.2), (0, 0, 0)),), top)
    view = View(WIDTH, HEIGHT, horizon=HEIGHT - 15 - 1.2 * SCALE, eye=1.2, focal=400.0)
    before = len(picture.drawn)
    picture.add(thing(made, view.aim(100, SCALE, 0.5 * top)))
    assert len(picture.drawn) == before + 1


def test_a_thing_that_would_hide_most_of_somebody_is_left_out() -> None:
    picture = _picture()
    _add(picture, 100)
    with pytest.raises(AssertionError):
        _hide(picture, 1.9)
    assert (_label(picture).keypoints[:, 2] == 2).all()


def test_joints_outside_the_picture_are_not_labelled() -> None:
    picture = _picture()
    _add(picture, 0)
    label = _label(picture)
    # Facing the viewer with the feet at column 0: the right half is cut off.
    assert _v(label, "left_shoulder", "left_elbow", "left_hip", "left_knee") == [2, 2, 2, 2]
    assert _v(label, "right_shoulder", "right_elbow", "right_wrist", "right_hip", "right_knee") == [0] * 5
    assert label.box_xywh_px[0] == 0


def test_an_arm_behind_the_back_shows_from_behind_only() -> None:
    angles = np.zeros((len(Bone), 3))
    # 25 degrees of abduction are added by _stance.
    angles[Bone.UPPER_ARM_L] = (-45, -25, -60)
    angles[Bone.FOREARM_L] = (80, 0, 0)
    stance = _stance(0.0, angles)
    joints = joints_of(stance)
    assert joints[JOINT["left_wrist"], 2] < joints[JOINT["left_hip"], 2] - 0.1
    assert abs(joints[JOINT["left_wrist"], 0]) < 0.1
    for yaw, shows in ((0.0, False), (np.pi, True)):
        picture = _picture()
        _add(picture, 100, stance=articulate(stance.body, stance.pose, yaw))
        wrist, elbow = _v(_label(picture), "left_wrist", "left_elbow")
        assert (wrist == 2) == shows
        assert elbow == 2


def test_small_people_keep_their_box_but_get_no_joints() -> None:
    picture = _picture()
    _add(picture, 100, scale=30.0)
    label = _label(picture)
    assert LEAST_AREA_PX <= label.area_px < 32 * 32
    assert (label.keypoints == 0).all()
    assert (label.box_xywh_px[2:] > 5).all()


def test_the_runs_of_a_label_are_its_pixels() -> None:
    picture = _picture()
    _add(picture, 3)
    label = _label(picture)
    values = np.repeat(np.arange(len(label.runs)) % 2, label.runs)
    np.testing.assert_array_equal(values.reshape(WIDTH, HEIGHT).T == 1, picture.ids == 1)


def test_the_seat_hides_but_does_not_belong_to_the_person() -> None:
    picture = _picture()
    stance = _stance()
    model = build_person(stance, _outfit(stance))
    alone = _picture()
    _add(alone, 100)
    model.box((Bone.WORLD, 0, 0.2, 0.5), (0.5, 0.2, 0.02), (Surface.THING, Cloth.THING, Bone.WORLD))
    view = View(WIDTH, HEIGHT, horizon=HEIGHT - 15 - 1.2 * SCALE, eye=1.2, focal=400.0)
    picture.add(person(stance, _outfit(stance), view.aim(100, SCALE, 0.875), model))
    label = _label(picture)
    assert label.area_px < _label(alone).area_px
    assert (picture.ids[150:185, 60:70] == 0).all(), "the board's own pixels are nobody's"
    assert _v(label, "left_ankle", "right_ankle")[0] != 2


def test_a_watch_is_on_the_left_wrist_only() -> None:
    stance = _stance()
    white = Fabric((1, 1, 1), (1, 1, 1), grain=0.0)
    black = Fabric((0, 0, 0), (0, 0, 0), grain=0.0)
    fabrics = [white] * len(sample_outfit(np.random.default_rng(5), stance.body).fabrics)
    fabrics[Cloth.DARK] = black
    view = View(WIDTH, HEIGHT, horizon=HEIGHT - 15 - 1.2 * SCALE, eye=1.2, focal=400.0)
    levels = {}
    for watch in (True, False):
        picture = _picture()
        outfit = _outfit(stance, watch=watch, fabrics=tuple(fabrics))
        picture.add(person(stance, outfit, view.aim(100, SCALE, 0.875)))
        points = _label(picture).keypoints
        for side in ("left", "right"):
            elbow, wrist = points[JOINT[f"{side}_elbow"], :2], points[JOINT[f"{side}_wrist"], :2]
            x, y = np.floor(elbow + 0.9 * (wrist - elbow) + 0.5).astype(int)
            levels[side, watch] = int(picture.colour[y, x].mean())
    assert levels["left", True] < 40
    assert min(levels["right", True], levels["left", False], levels["right", False]) > 100


@pytest.mark.parametrize("eye_height", [0.5, 1.2, 2.6])
def test_eyes_are_labelled_where_they_are_painted_however_obliquely_they_are_seen(eye_height: float) -> None:
    stance = _stance()
    drawn = sample_outfit(np.random.default_rng(5), stance.body)
    fabrics = list(drawn.fabrics)
    fabrics[Cloth.IRIS] = Fabric((0, 1, 0), (0, 1, 0), grain=0.0)
    outfit = _outfit(stance, fabrics=tuple(fabrics), neckline=0.08)
    # So near that the head is seen from 20 degrees below, or from above: the label must follow the perspective.
    scale = 250.0
    head = float(joints_of(stance)[JOINT["nose"], 1])
    view = View(WIDTH, HEIGHT, horizon=100 - scale * (eye_height - head), eye=eye_height, focal=2.2 * scale)
    picture = _picture()
    picture.add(person(stance, outfit, view.aim(100, scale, 0.875)))
    points = _label(picture).keypoints
    red, green, blue = picture.colour.astype(int).transpose(2, 0, 1)
    rows, columns = np.nonzero((green > red + 60) & (green > blue + 60))
    middle = points[[JOINT["left_eye"], JOINT["right_eye"]], 0].mean()
    for name, side in (("left_eye", columns > middle), ("right_eye", columns < middle)):
        iris = np.array([columns[side].mean(), rows[side].mean()])
        # The iris measures 10 x 12 px here.
        assert np.abs(iris - points[JOINT[name], :2]).max() < 2.5
        assert points[JOINT[name], 2] == 2


def test_a_crowd_is_labelled_once_without_joints() -> None:
    picture = _picture()
    _add(picture, 60, scale=60.0)
    stance = _stance()
    view = View(WIDTH, HEIGHT, horizon=60.0, eye=1.2, focal=400.0)
    for x in (130, 138, 146):
        picture.add(replace(person(stance, _outfit(stance), view.aim(x, 15.0, 0.875)), crowd=True))
    one, crowd = picture.labels()
    assert (one.crowd, crowd.crowd) == (False, True)
    assert (crowd.keypoints == 0).all()
    mask = picture.ids > 1
    assert crowd.area_px == mask.sum() > 3 * 40
    assert crowd.box_xywh_px[2] > 20
    record = image_record(4, "x.jpg", WIDTH, HEIGHT, [one, crowd])
    assert [a["iscrowd"] for a in record.annotations] == [0, 1]
    assert record.annotations[1]["num_keypoints"] == 0
    assert record.image["crowdIndex"] == 0.0


def test_patterned_fabrics_have_two_colours_one_can_tell_apart() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        fabric = sample_fabric(rng, tuple(rng.random(3)), plain=0.0)
        assert sum(abs(a - b) for a, b in zip(fabric.first, fabric.second, strict=True)) >= 0.15


def test_crowd_index_of_a_scene_worked_out_by_hand() -> None:
    # Person a: box 0..10, 4 own joints inside; b: box 5..25, 2 own joints inside, one of a's joints at (6, 6) too.
    a = np.array([[1, 1, 2], [2, 2, 2], [6, 6, 1], [9, 1, 2], [0, 0, 0]], dtype=float)
    b = np.array([[12, 12, 2], [8, 8, 1], [0, 0, 0], [0, 0, 0], [0, 0, 0]], dtype=float)
    boxes = [np.array([0.0, 0, 10, 10]), np.array([5.0, 5, 20, 20])]
    # a has b's (8, 8): 1/4; b has a's (6, 6): 1/2; the mean is 3/8.
    assert crowd_index(boxes, [a, b]) == pytest.approx(0.375)
    assert crowd_index(boxes[:1], [a]) == 0.0
    nobody = np.zeros((5, 3))
    assert crowd_index(boxes, [a, nobody]) == 0.0
    assert crowd_index([], []) == 0.0


def test_what_covers_somebody_reaches_the_waist_the_chest_or_the_neck_and_is_wider_than_they_are() -> None:
    highest = []
    for seed in range(60):
        made = sample_cover(np.random.default_rng(seed), 1.7)
        screen = see(made.model, made.frames, Camera(np.eye(3), np.zeros(3), 1e6, 100.0, (0.0, 0.0)))
        # Without the bottles and boxes on it: 100 px/m, y down, windows rounded outwards by up to 2 px.
        left, top, right, _ = screen.boxes[screen.tags[:, 1] != 2].T
        assert right.max() - left.min() >= 100
        highest.append(-float(top.min()) / 170)
    assert min(highest) > 0.4
    assert max(highest) < 0.95
    assert 0.15 < np.mean(np.array(highest) > 0.78) < 0.45, "three in ten leave the head and the shoulders"
    assert np.mean(np.array(highest) > 0.53) > 0.6, "most of them hide the hips, at .53 of the stature"
    # Whose hips are below the picture is covered higher, and nobody up to the eyes.
    raised = [
        sample_cover(np.random.default_rng(seed), 1.7, least).height for seed in range(20) for least in (1.1, 1.6)
    ]
    assert 1.15 < min(raised) < max(raised) < 0.9 * 1.7 + 0.01
