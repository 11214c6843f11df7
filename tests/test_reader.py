"""Batches: equal to what the original image gives, the same whatever reads them, and no thread left behind."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from efafnet.models.settings import InputSize
from efafnet.pipelines.crops import groups as groups_module
from efafnet.pipelines.crops import reader as reader_module
from efafnet.pipelines.crops.augmentation import AugmentationConfig
from efafnet.pipelines.crops.batch import Batch
from efafnet.pipelines.crops.config import ReaderConfig
from efafnet.pipelines.crops.groups import GroupReader
from efafnet.pipelines.crops.prepare import run_prepare
from efafnet.pipelines.crops.reader import EvalReader, TrainReader, read_rows
from efafnet.pipelines.crops.store import CropStore
from tests import crop_data
from tests.waiting import assert_threads_end

_SIZE = InputSize(height=128, width=96)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> CropStore:
    """18 persons in row groups of 4."""
    envelope = {"padding": 1.25, "scale_factor": 0.3, "rotation_deg": 40}
    return crop_data.make_store(
        tmp_path_factory.mktemp("crops"), rows_per_group=4, rows_per_shard=10, envelope=envelope
    )


@pytest.fixture(autouse=True)
def _no_thread_left() -> Iterator[None]:
    before = threading.enumerate()
    yield
    assert_threads_end(before)


def _train(store: CropStore, **settings: object) -> TrainReader:
    given = {"input_size": _SIZE, "augmentation": AugmentationConfig(), "global_batch": 7, "seed": 5, **settings}
    return TrainReader(store, **given)  # type: ignore[arg-type]


def _all(batches: Iterator[Batch]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    parts = list(batches)
    return tuple(np.concatenate([getattr(p, name).numpy() for p in parts]) for name in ("rows", "images", "joints_px"))  # type: ignore[return-value]


def test_shapes_and_types(store: CropStore) -> None:
    with _train(store) as reader:
        batch = next(reader.batches(0, 1))
    assert batch.images.shape == (7, 3, 128, 96)
    assert batch.images.dtype == torch.uint8
    assert (batch.joints_px.shape, batch.joints_px.dtype) == ((7, 17, 2), torch.float32)
    assert (batch.visibility.shape, batch.visibility.dtype) == ((7, 17), torch.uint8)
    assert (batch.input_to_image.shape, batch.input_to_image.dtype) == ((7, 2, 3), torch.float64)
    assert batch.images.is_contiguous()


@pytest.mark.parametrize(("threads", "prefetch", "ahead"), [(1, 1, 0), (3, 5, 2)])
def test_threads_and_queues_change_nothing(store: CropStore, threads: int, prefetch: int, ahead: int) -> None:
    config = ReaderConfig(threads=threads, prefetch_batches=prefetch, read_ahead_batches=ahead, read_threads=threads)
    with _train(store) as one, _train(store, config=config) as other:
        for a, b in zip(_all(one.batches(0, 8)), _all(other.batches(0, 8)), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("world", [2, 3])
def test_workers_together_read_what_one_reads(store: CropStore, world: int) -> None:
    with _train(store) as one:
        whole = [batch.images.numpy() for batch in one.batches(0, 6)]
    for rank in range(world):
        with _train(store, rank=rank, world_size=world) as reader:
            for step, batch in enumerate(reader.batches(0, 6)):
                np.testing.assert_array_equal(batch.images.numpy(), np.array_split(whole[step], world)[rank])


def test_resuming_continues_with_the_next_sample(store: CropStore) -> None:
    """Steps 0..8 in one go, and 0..3 by one worker, 3..6 by two, 6..8 by one: within epochs of 18 samples."""
    with _train(store) as one:
        rows, images, _ = _all(one.batches(0, 8))
    found: list[Batch] = []
    for world, first, last in ((1, 0, 3), (2, 3, 6), (1, 6, 8)):
        parts = []
        for rank in range(world):
            with _train(store, rank=rank, world_size=world) as reader:
                parts.append(list(reader.batches(first, last)))
        found += [batch for step in zip(*parts, strict=True) for batch in step]
    np.testing.assert_array_equal(np.concatenate([batch.rows.numpy() for batch in found]), rows)
    np.testing.assert_array_equal(np.concatenate([batch.images.numpy() for batch in found]), images)


def test_another_training_set_is_read_from_the_row_groups_that_were_drawn(
    store: CropStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The crops of its rows are those of the store; six row groups are too few unless a test says otherwise."""
    with pytest.raises(
        ValueError, match="has 6 row groups; another training set is drawn from at least 20: set resample=none"
    ):
        _train(store, resampled=True)
    monkeypatch.setattr(reader_module, "FEWEST_DRAWN", 6)
    still = AugmentationConfig().without_variation()
    with _train(store, resampled=True, augmentation=still) as reader, EvalReader(store, input_size=_SIZE) as plain:
        rows, images, joints_px = _all(reader.batches(0, 6))
        _, every_image, every_joint = _all(plain.batches())
    assert len(set(rows.tolist())) < 18
    np.testing.assert_array_equal(images, every_image[rows])
    np.testing.assert_allclose(joints_px, every_joint[rows])


def test_large_crops_are_shuffled_in_smaller_windows(store: CropStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Six groups of equal bytes (but for the last of each shard): room for two and a half of them means two."""
    assert len(store.row_groups) == 6
    assert reader_module.window_groups(store, 48) == 48
    assert reader_module.window_groups(store, 3) == 3
    size = sum(shard.bytes for shard in store.manifest.shards)
    monkeypatch.setattr(reader_module, "_WINDOW_BYTES", 2.5 * size / 6)
    assert reader_module.window_groups(store, 48) == 2
    monkeypatch.setattr(reader_module, "_WINDOW_BYTES", 1)
    assert reader_module.window_groups(store, 48) == 1


def test_few_windows_of_large_crops_are_held(store: CropStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """However far the reader looks ahead: those of two batches, which here may touch two windows each; not all 13."""
    size, held = sum(shard.bytes for shard in store.manifest.shards), [0]
    monkeypatch.setattr(reader_module, "_WINDOW_BYTES", 1.1 * size / 6)
    want = GroupReader.want

    def noted(self: GroupReader, keys: Iterable[tuple[int, int]]) -> None:
        want(self, keys)
        held.append(len({window for window, _ in self._held}))

    monkeypatch.setattr(GroupReader, "want", noted)
    with _train(store, global_batch=2) as reader:
        assert len(list(reader.batches(0, 27))) == 27
    assert 2 <= max(held) <= 4


def test_an_epoch_has_every_person_once(store: CropStore) -> None:
    with _train(store, global_batch=6) as reader:
        assert reader.store.num_persons == 18
        rows, _, _ = _all(reader.batches(3, 6))
    assert sorted(rows.tolist()) == list(range(18))


@pytest.mark.parametrize("world", [1, 2, 4])
def test_evaluation_sees_every_person_once(store: CropStore, world: int) -> None:
    rows: list[int] = []
    for rank in range(world):
        with EvalReader(store, input_size=_SIZE, batch_size=4, rank=rank, world_size=world) as reader:
            batches = list(reader.batches())
            assert len(batches) == len(reader)
            rows += [row for batch in batches for row in batch.rows.tolist()]
    assert rows == list(range(18))


def test_more_workers_than_persons_leave_some_without(store: CropStore) -> None:
    with EvalReader(store, input_size=_SIZE, rank=20, world_size=21) as reader:
        assert list(reader.batches()) == []


def _original(folder: Path, name: str, affine: np.ndarray, size: InputSize) -> np.ndarray:
    """The sample as a peer takes it: the whole image decoded, warped, RGB planes."""
    image = crop_data.read_picture(folder / name)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(image, affine, (size.width, size.height), flags=flags)[:, :, ::-1].transpose(2, 0, 1)


def _compare(store: CropStore, images: Path, size: InputSize, count: int) -> tuple[float, float, int]:
    """Mean absolute difference, PSNR and largest difference of ``count`` samples over the whole envelope."""
    table = store.columns(["file_name", "joints_px"])
    names = table["file_name"].to_pylist()
    joints = np.array(table["joints_px"].to_pylist()).reshape(len(names), -1, 2)
    # Every sample rotated, most of them as far as the envelope goes: +-80 degrees.
    wild = AugmentationConfig(rotation_probability=1.0, half_body_probability=0.3)
    total, squares, pixels, largest = 0.0, 0.0, 0, 0
    with TrainReader(store, input_size=size, augmentation=wild, global_batch=10, seed=2) as reader:
        for batch in reader.batches(0, count // 10):
            for n, row in enumerate(batch.rows.tolist()):
                affine = batch.input_to_image[n].numpy()
                back = batch.joints_px[n].numpy().astype(np.float64) @ affine[:, :2].T + affine[:, 2]
                # In the frame of the input: a pixel there is `zoom` image pixels.
                zoom = np.hypot(affine[0, 0], affine[1, 0])
                swapped = back[list(store.skeleton.flip_permutation)] if np.linalg.det(affine[:, :2]) < 0 else back
                seen = batch.visibility[n].numpy() > 0
                seen = seen[list(store.skeleton.flip_permutation)] if swapped is not back else seen
                assert np.abs(swapped - joints[row])[seen].max() / zoom < 1e-3
                expected = _original(images, names[row], affine, size)
                difference = np.abs(expected.astype(int) - batch.images[n].numpy())
                inside = expected.any(axis=0) | batch.images[n].numpy().any(axis=0)
                total += difference[:, inside].sum()
                squares += float((difference[:, inside] ** 2).sum())
                pixels += 3 * int(inside.sum())
                largest = max(largest, int(difference.max()))
    psnr = 10 * np.log10(255**2 / (squares / pixels)) if squares else np.inf
    return total / pixels, float(psnr), largest


@pytest.mark.parametrize("encoding", ["raw", "png"])
def test_exact_encodings_equal_the_original_image(tmp_path: Path, encoding: str) -> None:
    """Within one grey level: OpenCV interpolates in single precision, and crop coordinates are smaller numbers."""
    store = crop_data.make_store(tmp_path, encoding={"format": encoding})
    difference, _, largest = _compare(store, tmp_path / "images", InputSize(height=256, width=192), 60)
    assert largest <= 1
    assert difference < 1e-3


def test_jpeg_equals_the_original_image(tmp_path: Path) -> None:
    """Grainy pictures with halved chroma, the hardest case: what is lost is the chroma's second halving."""
    store = crop_data.make_store(tmp_path)
    difference, psnr, _ = _compare(store, tmp_path / "images", InputSize(height=256, width=256), 60)
    assert difference < 0.9
    assert psnr > 43


def test_real_crops_equal_the_original_images(tmp_path: Path) -> None:
    """COCO's own JPEGs: measured 0.08 grey levels and 58.7 dB."""
    folder = crop_data.real_data("coco-mini")
    annotations = folder / "annotations" / "person_keypoints_train.json"
    store = run_prepare(
        crop_data.config(tmp_path, annotations=annotations, images=folder / "images", out=tmp_path / "store")
    )
    difference, psnr, _ = _compare(store, folder / "images", InputSize(height=256, width=192), 170)
    assert difference < 0.12
    assert psnr > 55


def test_reduced_crops_keep_joints_exact(tmp_path: Path) -> None:
    """A 64-pixel input of 400-pixel images with no density to spare: joints stay exact, pixels are averaged."""
    crop_data.write_coco(tmp_path, size=(400, 300))
    store = run_prepare(
        crop_data.config(tmp_path, max_oversampling=1.0, envelope={"inputs": ["64x64"]}, encoding={"format": "raw"})
    )
    assert store.manifest.counts.reduced > 10
    difference, _, _ = _compare(store, tmp_path / "images", InputSize(height=64, width=64), 60)
    assert difference < 12


def test_outside_the_image_is_black(tmp_path: Path) -> None:
    """A white image, a person at its left edge: what lies left of the image is 0, what lies inside stays white."""
    annotations, images = crop_data.write_coco(tmp_path, images=1, persons=1)
    cv2.imwrite(str(images / "000000.jpg"), np.full((160, 200, 3), 255, dtype=np.uint8))

    def move(content: dict[str, list[dict[str, object]]]) -> None:
        content["annotations"][0] = crop_data.person(1, 1, [0.0, 20, 60, 80])

    crop_data.edit(annotations, move)
    store = run_prepare(crop_data.config(tmp_path))
    batch = read_rows(store, [0], input_size=_SIZE)
    # Clipped box 59x79 at (0, 20), widened to 59.25, padded to 74.06: input column 0 is image column -7.5.
    column = batch.images[0, 0, 64].tolist()
    edge = (0 - float(batch.input_to_image[0, 0, 2])) / float(batch.input_to_image[0, 0, 0])
    assert 9 < edge < 10.5
    assert column[:9] == [0] * 9
    assert min(column[12:90]) > 250


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"augmentation": AugmentationConfig(rotation_deg=60)}, "rotation_deg is 60"),
        ({"input_size": InputSize(height=256, width=512)}, "width / height 2"),
        ({"rank": 3, "world_size": 8, "global_batch": 4}, "cannot share a global batch of 4"),
    ],
)
def test_what_cannot_be_served_is_refused(store: CropStore, settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _train(store, **settings)


def test_rows_that_do_not_exist_are_refused(store: CropStore) -> None:
    with pytest.raises(ValueError, match=r"has rows 0..17"):
        read_rows(store, [0, 18], input_size=_SIZE)


def test_leaving_early_ends_the_threads(store: CropStore) -> None:
    """The fixture counts the threads."""
    reader = _train(store)
    for step, _ in enumerate(reader.batches(0, 1000)):
        if step == 2:
            break
    reader.close()
    batches = _train(store).batches(0, 1000)
    next(batches)
    del batches


def test_a_damaged_crop_is_an_error_that_names_it(tmp_path: Path) -> None:
    made = crop_data.make_store(tmp_path)
    table = pq.read_table(made.path / made.manifest.shards[0].name)
    images = table["image"].to_pylist()
    images[0] = bytes(30) + images[0][30:]  # its JPEG header; the Parquet around it is sound
    at = table.schema.get_field_index("image")
    crop_data.replace_shard(made, table.set_column(at, table.schema.field(at), pa.array(images, pa.binary())))
    with (
        _train(CropStore.open(tmp_path / "store")) as reader,
        pytest.raises(ValueError, match=r"row 0: a crop of \d+x\d+ pixels cannot be decoded"),
    ):
        list(reader.batches(0, 3))


def test_waiting_is_counted(store: CropStore) -> None:
    with _train(store) as reader:
        list(reader.batches(0, 5))
        assert 0 < reader.wait_s < 60


@pytest.mark.parametrize("share", [True, False])
def test_shards_on_a_share_are_not_mapped_into_memory(
    store: CropStore, monkeypatch: pytest.MonkeyPatch, share: bool
) -> None:
    """There a read that fails would be a signal that ends the process, and not an error that is tried again."""
    opened: list[tuple[object, object]] = []
    honest = pq.ParquetFile

    def open_file(path: Path, **options: object) -> pq.ParquetFile:
        opened.append((options["memory_map"], options["pre_buffer"]))
        return honest(path, **options)

    monkeypatch.setattr(groups_module, "is_on_network", lambda _: share)
    monkeypatch.setattr(pq, "ParquetFile", open_file)
    read_rows(store, [1, 8], input_size=_SIZE)
    assert set(opened) == {(not share, share)}
