"""``efafnet check``: a sheet of what the network will see, a few persons overfitted, and what looks wrong."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from efafnet.models.heatmaps import encode
from efafnet.pipelines.check import rules
from efafnet.pipelines.check.config import CheckConfig
from efafnet.pipelines.check.fit import ENOUGH, FEWEST_STEPS, Fit, People, ceiling, learn, people_of
from efafnet.pipelines.crops import philox
from efafnet.pipelines.crops.inspect import oddities
from efafnet.pipelines.crops.reader import read_rows
from efafnet.pipelines.crops.store import GROUND_TRUTH, CropStore
from efafnet.pipelines.drawing.poses import ANNOTATED, Picture, draw_person, encoded
from efafnet.pipelines.drawing.sheets import Cell, contact_sheet
from efafnet.pipelines.drawing.text import HIDDEN, SIDES
from efafnet.pipelines.training.context import pick_device
from efafnet.pipelines.training.inputs import check_sides, open_inputs
from efafnet.pipelines.training.introduction import network_text, store_text
from efafnet.platform import console, machine, storage

_MOST_PERSONS = 20_000
"""Persons that the rules look at."""
_LEAST_HEIGHT_PX = 250
"""Of a sample on a sheet."""
_LEGEND = (*SIDES, *HIDDEN)


def run_check(config: CheckConfig) -> int:
    """Check a training before it is begun.

    Returns:
        0 where the network could be overfitted to the persons, 1 where it could not.

    Raises:
        ValueError: the stores do not fit the settings, as in training.
    """
    inputs = open_inputs(config)
    store = inputs.train
    check_sides(config, store.skeleton)
    console.note(store_text("data", store))
    console.note(f"network: {network_text(config, inputs)}; on {machine.describe(pick_device(config.device))}")
    out = fresh_directory(config.out)
    people = people_of(config, store, chosen_rows(store, config.persons, config.seed))
    _write(_samples(config, store, people), out / "samples.jpg")
    console.say(f"samples with joints and targets: {out / 'samples.jpg'}")
    top, error_px = ceiling(config, people)
    fit = learn(config, inputs, people)
    _write(_learned(people, fit), out / "fit.jpg")
    _print_fit(people, fit, top)
    console.say(f"what was found of them: {out / 'fit.jpg'}")
    remarks = [*suspicions(store, people), *rules.unreachable(top, error_px, store.skeleton)]
    for remark in remarks:
        console.warn(remark)
    return _verdict(config, fit, remarks)


def fresh_directory(out: Path) -> Path:
    """Make ``out``, or the first of out-2, out-3, … that is not there yet; UnwritableError where it cannot be."""
    path, number = out, 1
    while True:
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            number += 1
            path = out.with_name(f"{out.name}-{number}")
        except OSError as error:
            raise storage.UnwritableError(
                f"out={path} cannot be made: {error.strerror or error}; name a writable place"
            ) from error
        else:
            return path


def chosen_rows(store: CropStore, count: int, seed: int) -> list[int]:
    """Rows of persons drawn at random among those with at least half as many joints as the best annotated one."""
    flat = store.columns(["visibility"])["visibility"].combine_chunks().flatten().to_numpy()
    joints = (flat.reshape(store.num_persons, -1) > 0).sum(axis=1)
    order = philox.permutation(store.num_persons, 0, 0, philox.key_of("check", seed))
    whole = [int(row) for row in order if 2 * joints[row] >= joints.max() and joints[row] > 0]
    if len(whole) < 2:
        raise ValueError(f"data.train = {store.location}: a check needs two persons with joints; it has {len(whole)}")
    return sorted(whole[:count])


def suspicions(store: CropStore, people: People) -> list[str]:
    """What looks wrong with a store's annotations and with the crops that were read."""
    table = store.table(GROUND_TRUTH).slice(0, _MOST_PERSONS)
    keypoints = table["keypoints"].combine_chunks().flatten().to_numpy().reshape(table.num_rows, -1, 3)
    keypoints = keypoints[(keypoints[:, :, 2] > 0).any(axis=1)]
    joints, seen = keypoints[:, :, :2], np.asarray(keypoints[:, :, 2] > 0)
    batch, skeleton = people.batch, store.skeleton
    visible = np.asarray(batch.visibility.numpy() > 0)
    return [
        *oddities(store),
        *rules.unlabelled_joints(seen, skeleton),
        *rules.joints_at_origin(joints, seen),
        *rules.exchanged_sides(joints, seen, skeleton),
        *rules.reversed_faces(joints, seen, skeleton),
        *rules.unlike_pairs(joints, seen, skeleton),
        *rules.cut_off_joints(batch.joints_px.numpy(), visible, (batch.images.shape[2], batch.images.shape[3])),
        *rules.odd_pixels(batch.images.numpy()),
        *rules.odd_sigmas(skeleton),
    ]


def _print_fit(people: People, fit: Fit, top: float) -> None:
    if fit.network:
        console.say(f"learned by: {fit.network}")
    rows = [
        ("perfect heatmaps", f"{top:.3f}", f"{top:.3f}"),
        (f"after {fit.steps} steps, {fit.seconds:.0f} s", f"{fit.ap:.3f}", f"{fit.mirrored_ap:.3f}"),
    ]
    console.table([f"AP of {people.count} persons", "as they are", "mirrored"], rows)


def _verdict(config: CheckConfig, fit: Fit, remarks: list[str]) -> int:
    if fit.learned:
        found = f"; {len(remarks)} remarks above" if remarks else ""
        console.say(f"in order: the persons were overfitted, AP above {ENOUGH}{found}")
        return 0
    console.warn(
        f"the persons could NOT be overfitted: AP {min(fit.ap, fit.mirrored_ap):.3f} instead of above {ENOUGH} (loss "
        f"{fit.first_loss:.4g} -> {fit.last_loss:.4g})"
    )
    few = fit.steps < FEWEST_STEPS and fit.seconds >= config.limit_s
    if not np.isfinite(fit.last_loss) or (fit.last_loss > fit.first_loss and not few):
        console.warn("the loss does not fall: lower optimizer.lr, or look for what is wrong with the pictures")
    elif fit.ap > ENOUGH:
        console.warn("flip pairs: only the mirrored persons were not learned; are the skeleton's flip_pairs right?")
    elif few:
        doubt = "and mend what is remarked above" if remarks else "before you doubt the data"
        console.warn(
            f"{fit.steps} steps in {config.limit_s:g} s may be too few: give limit_s={4 * config.limit_s:g}, a smaller "
            f"input, or a GPU, {doubt}"
        )
    else:
        console.warn("the heatmaps were learned and AP is low: boxes, areas or sigmas; see fit.jpg and the remarks")
    return 1


# ---- pictures


def _write(picture: Picture, path: Path) -> None:
    """Write a picture, whole or not at all."""
    storage.write_bytes(path, encoded(picture, path.suffix))


def _samples(config: CheckConfig, store: CropStore, people: People) -> Picture:
    """Augmented samples beside their targets."""
    rows = people.batch.rows[: people.count].tolist()
    udp = config.heatmap.encoding == "udp"
    batch = read_rows(store, rows, input_size=config.input, augmentation=config.augmentation, seed=config.seed, udp=udp)
    target = encode(batch.joints_px, batch.visibility, config.input, config.heatmap)
    warmth = target.heatmaps.max(dim=1).values.numpy()
    names = store.rows(["file_name"], rows)["file_name"].to_pylist()
    cells = []
    for n, row in enumerate(rows):
        image = np.ascontiguousarray(batch.images[n].numpy().transpose(1, 2, 0))
        drawn = _drawn(people, image, batch.joints_px[n].numpy(), batch.visibility[n].numpy())
        counted = int(target.weights[n].sum())
        cells.append(
            Cell((drawn, _heated(_enlarged(image), warmth[n])), f"row {row}, {counted} joints in the target", names[n])
        )
    return contact_sheet(cells, f"augmented samples of {store.location} and their targets", _LEGEND)


def _learned(people: People, fit: Fit) -> Picture:
    """What was found beside what is annotated, the worst first, as they are and mirrored."""
    batch = people.batch
    cells = []
    for n in np.argsort(fit.oks):
        image = np.ascontiguousarray(batch.images[n].numpy().transpose(1, 2, 0))
        visibility = batch.visibility[n].numpy()
        pair = [_drawn(people, image, joints, visibility) for joints in (fit.joints_px[n], batch.joints_px[n].numpy())]
        kind = "mirrored" if n >= people.count else "as it is"
        cells.append(Cell(tuple(pair), f"OKS {fit.oks[n]:.3f}", f"row {int(batch.rows[n])}, {kind}"))
    return contact_sheet(cells, "overfitted: found, annotated; the worst first", _LEGEND)


def _drawn(people: People, image: Picture, joints_px: NDArray[np.floating], visibility: NDArray[np.uint8]) -> Picture:
    """A sample with its joints, drawn where they lie once it is enlarged; the centre of the first pixel is 0."""
    factor = _factor(image)
    shown_px = (joints_px + 0.5) * factor - 0.5
    return draw_person(_enlarged(image), shown_px, [ANNOTATED[v] for v in visibility.tolist()], people.skeleton)


def _factor(image: Picture) -> int:
    return -(-_LEAST_HEIGHT_PX // len(image))


def _enlarged(image: Picture) -> Picture:
    """A sample so large that its joints do not cover it."""
    factor = _factor(image)
    larger: Picture = np.repeat(np.repeat(image, factor, axis=0), factor, axis=1)
    return larger


def _heated(image: Picture, warmth: NDArray[np.float32]) -> Picture:
    """The picture, dimmed, with a heatmap (h, w) of 0 to 1 glowing in it."""
    height, width = image.shape[:2]
    glow = cv2.resize(warmth, (width, height), interpolation=cv2.INTER_LINEAR)[..., None]
    colour = np.array([255, 70, 40], np.float32)
    mixed: Picture = np.clip((1 - glow) * 0.5 * image + glow * colour, 0, 255).astype(np.uint8)
    return mixed
