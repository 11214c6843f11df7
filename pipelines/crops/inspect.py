"""``efafnet inspect``: what a crop store holds, whether it is whole, and what its persons look like."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from efafnet.models.skeleton import Skeleton
from efafnet.pipelines.crops import philox
from efafnet.pipelines.crops.augmentation import AugmentationConfig
from efafnet.pipelines.crops.batch import Batch
from efafnet.pipelines.crops.config import InspectConfig
from efafnet.pipelines.crops.reader import read_rows
from efafnet.pipelines.crops.store import GROUND_TRUTH, IMAGES, PERSONS, REJECTS, CropStore
from efafnet.pipelines.drawing.poses import ANNOTATED, Picture, draw_person, encoded
from efafnet.pipelines.drawing.sheets import Cell, contact_sheet
from efafnet.pipelines.drawing.text import HIDDEN, SIDES
from efafnet.pipelines.formats.plausibility import Persons, odd_persons, odd_skeleton
from efafnet.platform import console, storage
from efafnet.platform.mirror import is_address

_PERCENTILES = (0, 5, 25, 50, 75, 95, 100)
_MOST_LOOKED_AT = 1_000_000
"""Most annotations that the remarks are made from."""


def run_inspect(config: InspectConfig) -> None:
    """Print what the store holds and draw the contact sheet; ValueError where there is no store or it is damaged."""
    store = CropStore.open(config.store)
    _tell_counts(store)
    _tell_sizes(store)
    _tell_rejects(store)
    if config.crops:
        _draw(config, store)
    if config.verify:
        _verify(store)
    for remark in oddities(store):
        console.warn(remark)


def _tell_counts(store: CropStore) -> None:
    manifest, counts = store.manifest, store.manifest.counts
    size = manifest.shards.total_bytes + sum(record.bytes for record in manifest.tables)
    encoding = manifest.encoding
    stored = f"jpeg, quality {encoding.quality}" if encoding.format == "jpeg" else encoding.format
    inputs = ", ".join(str(size) for size in manifest.envelope.inputs)
    rows = [
        ("skeleton", f"{store.skeleton.name} ({store.skeleton.num_joints} joints)"),
        ("persons", counts.persons),
        ("images", f"{counts.images} ({counts.images_read} with persons to crop)"),
        ("annotations", f"{counts.annotations} ({counts.crowds} crowds)"),
        ("sources", ", ".join(f"{source.data_set} ({source.format})" for source in manifest.sources)),
        ("size", f"{size / 1e6:.1f} MB in {len(manifest.shards)} files, {stored}"),
        ("reduced crops", counts.reduced),
        ("envelope", _envelope_text(store)),
        ("inputs", inputs),
        ("digest", manifest.digest),
        ("page check sums", "yes" if manifest.page_checksums else "none: reading does not notice damage, this does"),
    ]
    console.table(["", store.location], rows)


def _envelope_text(store: CropStore) -> str:
    envelope = store.manifest.envelope
    parts = [f"padding {envelope.padding:g}", f"scale ±{envelope.scale_factor:g}"]
    parts += [f"rotation ±{2 * envelope.rotation_deg:g}°", "half bodies" if envelope.half_body else "no half bodies"]
    return ", ".join(parts)


def _tell_sizes(store: CropStore) -> None:
    names = ("box width, px", "box height, px", "crop, 1000 px", "annotated joints", "hidden joints")
    found: dict[str, Counter[int]] = {name: Counter() for name in names}
    for table in store.batches(PERSONS, ["box_xywh", "crop_width", "crop_height", "visibility"]):
        boxes = table["box_xywh"].combine_chunks().flatten().to_numpy().reshape(-1, 4)
        joints = table["visibility"].combine_chunks().flatten().to_numpy().reshape(len(boxes), -1)
        pixels = table["crop_width"].to_numpy().astype(np.int64) * table["crop_height"].to_numpy()
        measured = (boxes[:, 2], boxes[:, 3], pixels / 1000, (joints > 0).sum(axis=1), (joints == 1).sum(axis=1))
        for counts, values in zip(found.values(), measured, strict=True):
            whole, times = np.unique(np.rint(values).astype(np.int64), return_counts=True)
            counts.update(dict(zip(whole.tolist(), times.tolist(), strict=True)))
    rows = [(name, *spread(counts)) for name, counts in found.items()]
    console.table(["per person", *("min" if p == 0 else "max" if p == 100 else f"{p} %" for p in _PERCENTILES)], rows)


def spread(counts: Mapping[int, int]) -> list[str]:
    """Percentiles of whole numbers that occur ``counts`` times each."""
    values = np.array(sorted(counts), np.int64)
    ends = np.cumsum([counts[value] for value in values.tolist()])
    places = np.array(_PERCENTILES) / 100 * (ends[-1] - 1)
    low, high = (values[np.searchsorted(ends, place(places), side="right")] for place in (np.floor, np.ceil))
    return [f"{value:.0f}" for value in low + (places % 1) * (high - low)]


def _tell_rejects(store: CropStore) -> None:
    if not store.manifest.rejects:
        console.say("nothing was rejected")
        return
    first: dict[str, str] = {}
    for table in store.batches(REJECTS, ["reason", "file_name", "detail"]):
        for reason in set(table["reason"].unique().to_pylist()) - first.keys():
            example = table.filter(pc.equal(table["reason"], reason)).slice(0, 1).to_pylist()[0]
            first[reason] = f"{example['file_name'] or ''}: {example['detail']}"
    rows = [(reason, count, first[reason]) for reason, count in store.manifest.rejects.items()]
    console.table(["left out", "count", "for example"], rows)


def oddities(store: CropStore) -> list[str]:
    """Conventions that most annotated persons seem to break, one sentence each.

    Of more than a million annotations every second, third, … is looked at.
    """
    people = _thinned(store, GROUND_TRUTH, ["image_id", "is_crowd", "box_xywh", "area", "keypoints"])
    people = people.filter(pc.invert(people["is_crowd"]))
    if not people.num_rows:
        return []
    theirs = people["image_id"].unique()
    parts = store.batches(IMAGES, ["image_id", "width", "height"])
    images = pa.concat_tables(part.filter(pc.is_in(part["image_id"], value_set=theirs)) for part in parts)
    place = pc.index_in(people["image_id"], value_set=images["image_id"].combine_chunks())
    sizes = [images[side].take(place).to_numpy(zero_copy_only=False) for side in ("width", "height")]
    keypoints = people["keypoints"].combine_chunks().flatten().to_numpy().reshape(people.num_rows, -1, 3)
    persons = Persons(
        people["box_xywh"].combine_chunks().flatten().to_numpy().reshape(-1, 4),
        people["area"].to_numpy(),
        keypoints[:, :, :2],
        np.asarray(keypoints[:, :, 2] > 0),
        np.array(sizes, np.float64).T,
    )
    drawn = all(source.format == "coco" for source in store.manifest.sources)
    return [*odd_persons(persons, boxes_are_drawn=drawn), *odd_skeleton(store.skeleton)]


def _thinned(store: CropStore, name: str, columns: Sequence[str]) -> pa.Table:
    """Rows of a table, evenly, at most a million."""
    parts, seen = [], 0
    (total,) = (record.rows for record in store.manifest.tables if record.name == name)
    step = max(1, -(-total // _MOST_LOOKED_AT))
    for part in store.batches(name, columns):
        parts.append(part.take(np.arange(-seen % step, part.num_rows, step)))
        seen += part.num_rows
    return pa.concat_tables(parts) if parts else store.table(name, columns)


def _verify(store: CropStore) -> None:
    problems = store.verify()
    if problems:
        raise ValueError(f"crop store {store.location} is damaged: {'; '.join(problems)}; prepare it again")
    console.say("digests agree")


def _draw(config: InspectConfig, store: CropStore) -> None:
    count = min(config.crops, store.num_persons)
    # A permutation of all rows would hold them all.
    generator = np.random.default_rng(philox.key_of("inspect", config.seed))
    rows = np.sort(generator.choice(store.num_persons, count, replace=False))
    envelope = store.manifest.envelope
    shown = AugmentationConfig(
        padding=envelope.padding,
        scale_factor=envelope.scale_factor,
        rotation_deg=envelope.rotation_deg,
        half_body_probability=0.3 if envelope.half_body else 0.0,
        half_body_padding=envelope.half_body_padding,
        half_body_min_joints=envelope.half_body_min_joints,
    )
    wanted = shown if config.augmented else shown.without_variation()
    batch = read_rows(store, rows.tolist(), input_size=envelope.inputs[0], augmentation=wanted, seed=config.seed)
    people = store.rows(["file_name", "person_id"], rows.tolist()).to_pylist()
    names = [f"{person['file_name']}, person {person['person_id']}" for person in people]
    kind = "augmented" if config.augmented else "as they are"
    title = f"{count} of {store.num_persons} persons of {store.location}, {kind}"
    path = _sheet_file(config)
    storage.write_bytes(path, encoded(sheet_of_samples(batch, store.skeleton, names, title=title), path.suffix))
    console.say(f"contact sheet of {console.counted(count, 'person')}: {path}")


def _sheet_file(config: InspectConfig) -> Path:
    """Where the contact sheet goes; UnwritableError where it cannot."""
    if config.sheet is not None:
        storage.check_output_file(config.sheet, overwrite=True)
        return config.sheet
    there = Path(config.store).absolute()
    name = f"{config.store.rstrip('/').rpartition('/')[2] if is_address(config.store) else there.name}-sheet.jpg"
    here = Path(name).absolute()
    beside = here if is_address(config.store) else there.parent / name
    # A store that many share is often not to be written by those who look at it.
    with suppress(storage.UnwritableError):
        storage.check_output_file(beside, overwrite=True)
        return beside
    storage.check_output_file(here, overwrite=True)
    return here


def sheet_of_samples(
    batch: Batch, skeleton: Skeleton, names: Sequence[str] = (), *, title: str = "", columns: int = 8
) -> Picture:
    """Picture (h, w, 3) uint8 RGB of all samples with their joints, row numbers and file ``names``."""
    told = names or [""] * len(batch)
    cells = [
        Cell(
            (_drawn(image, joints, visibility, skeleton),),
            caption=f"row {row}",
            detail=" ".join(filter(None, [name, f"{np.count_nonzero(visibility)} joints"])),
        )
        for image, joints, visibility, row, name in zip(
            batch.images.numpy(), batch.joints_px.numpy(), batch.visibility.numpy(), batch.rows.tolist(), told,
            strict=True,
        )
    ]  # fmt: skip
    return contact_sheet(cells, title, (*SIDES, *HIDDEN), columns)


def _drawn(image: Picture, joints: npt.NDArray[np.float32], visibility: Picture, skeleton: Skeleton) -> Picture:
    """One sample (3, H, W) as a picture (H, W, 3): visible joints filled, hidden ones hollow."""
    return draw_person(image.transpose(1, 2, 0), joints, [ANNOTATED[v] for v in visibility.tolist()], skeleton)
