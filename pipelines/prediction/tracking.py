"""Who is who from frame to frame of a video, and joints that tremble less.

Legend: N persons of a frame, T tracks, K joints. Coordinates are pixels of the frame.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from efafnet.pipelines.crops.geometry import box_iou
from efafnet.pipelines.formats.annotations import AREA_OF_BOX
from efafnet.pipelines.prediction.config import TrackingConfig

_SPEED_CUTOFF_HZ = 1.0
"""Cut-off of the low-pass filter on speeds, as in the authors' examples."""


@dataclass
class _Track:
    identity: int
    last_s: float
    keypoints: NDArray[np.float64]
    box_xywh_px: NDArray[np.float64]
    speed_px_s: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    smooth_px: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))


class Tracker:
    """Gives the persons of one video their ids, frame by frame, looking at no later frame.

    A person continues the track it resembles most: by the mean of OKS, over joints found in both, and IoU of the boxes,
    in the assignment whose sum is greatest; at least ``least_similarity``. Tracks that nobody continued for
    ``longest_gap_s`` end.
    """

    def __init__(self, sigmas: Sequence[float], config: TrackingConfig, sure_from: float) -> None:
        self._variances = (2 * np.asarray(sigmas, np.float64)) ** 2
        self._config = config
        self._sure_from = sure_from
        self._tracks: list[_Track] = []
        self._next_id = 1

    def __call__(self, results: Sequence[Mapping[str, Any]], time_s: float) -> list[dict[str, Any]]:
        """COCO results with ``bbox`` of the frame shown at ``time_s`` -> the same with ``track_id``, from 1.

        With ``smooth`` their joints are filtered along their tracks.
        """
        keypoints = [np.array(result["keypoints"], np.float64).reshape(-1, 3) for result in results]
        boxes = [np.array(result["bbox"], np.float64) for result in results]
        self._tracks = [track for track in self._tracks if time_s - track.last_s <= self._config.longest_gap_s]
        continued = self._assigned(keypoints, boxes)
        told = []
        for n, result in enumerate(results):
            track = continued.get(n)
            if track is None:
                track = _Track(self._next_id, time_s, keypoints[n], boxes[n])
                self._next_id += 1
                self._tracks.append(track)
            joints = self._smoothed(track, keypoints[n], boxes[n], time_s) if self._config.smooth else keypoints[n]
            track.last_s, track.keypoints, track.box_xywh_px = time_s, keypoints[n], boxes[n]
            told.append({**result, "keypoints": joints.reshape(-1).tolist(), "track_id": track.identity})
        return told

    def _assigned(
        self, keypoints: Sequence[NDArray[np.float64]], boxes: Sequence[NDArray[np.float64]]
    ) -> dict[int, _Track]:
        """The track that each person continues, by the person's place."""
        if not self._tracks or not keypoints:
            return {}
        from scipy.optimize import linear_sum_assignment  # here: it takes a while, and most predictions track nobody

        similarity = np.array(
            [
                [self._similarity(track, joints, box) for track in self._tracks]
                for joints, box in zip(keypoints, boxes, strict=True)
            ]
        )
        similarity[similarity < self._config.least_similarity] = 0.0
        pairs = zip(*linear_sum_assignment(similarity, maximize=True), strict=True)
        return {int(n): self._tracks[t] for n, t in pairs if similarity[n, t] > 0}

    def _similarity(self, track: _Track, keypoints: NDArray[np.float64], box: NDArray[np.float64]) -> float:
        overlap = float(box_iou(track.box_xywh_px[None], box[None])[0])
        both = (track.keypoints[:, 2] > self._sure_from) & (keypoints[:, 2] > self._sure_from)
        if not both.any():
            return overlap
        area = AREA_OF_BOX * (box[2] * box[3] + track.box_xywh_px[2] * track.box_xywh_px[3]) / 2
        squared = ((track.keypoints[both, :2] - keypoints[both, :2]) ** 2).sum(axis=1)
        oks = float(np.exp(-squared / (2 * area * self._variances[both])).mean())
        return (oks + overlap) / 2

    def _smoothed(
        self, track: _Track, keypoints: NDArray[np.float64], box: NDArray[np.float64], time_s: float
    ) -> NDArray[np.float64]:
        """Keypoints (K, 3) after the One-Euro filter (source: Casiez, Roussel and Vogel, CHI 2012, algorithm 1).

        Speeds count in sizes of the person a second, so that one setting suits near and far. A joint that was not found
        in one of two frames starts anew.
        """
        places = keypoints[:, :2]
        elapsed_s = time_s - track.last_s
        if not len(track.smooth_px) or elapsed_s <= 0:
            track.smooth_px, track.speed_px_s = places.copy(), np.zeros_like(places)
            return keypoints
        size_px = max(1.0, math.sqrt(box[2] * box[3]))
        speed = (places - track.smooth_px) / elapsed_s
        weight = _weight(np.array(_SPEED_CUTOFF_HZ), elapsed_s)
        track.speed_px_s = weight * speed + (1 - weight) * track.speed_px_s
        pace = np.hypot(*track.speed_px_s.T)[:, None] / size_px
        new = _weight(self._config.least_cutoff_hz + self._config.cutoff_per_speed * pace, elapsed_s)
        lost = ((keypoints[:, 2] <= 0) | (track.keypoints[:, 2] <= 0))[:, None]
        track.speed_px_s = np.where(lost, 0.0, track.speed_px_s)
        track.smooth_px = np.where(lost, places, new * places + (1 - new) * track.smooth_px)
        return np.concatenate([track.smooth_px, keypoints[:, 2:]], axis=1)


def _weight(cutoff_hz: NDArray[np.float64], elapsed_s: float) -> NDArray[np.float64]:
    """Weight of the new value in a low-pass filter of first order."""
    return 1 / (1 + 1 / (2 * math.pi * cutoff_hz * elapsed_s))
