"""What is known only once the pictures were read: boxes beyond them, boxes of frames that are not there, tags."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from efafnet.pipelines.formats.plausibility import odd_boxes
from efafnet.pipelines.prediction.media import Source
from efafnet.pipelines.prediction.person_boxes import BoxFile, Key, Placed
from efafnet.pipelines.prediction.spool import Record


class Seen:
    """The pictures that were read, beside the boxes that a file has for them."""

    def __init__(self, placed: Placed, frame_step: int) -> None:
        self._boxes = placed.boxes
        self._frame_step = frame_step
        self._sizes: dict[Key, tuple[int | None, int | None]] = {}
        self.tagged = 0
        """Pictures whose file says how to turn them."""

    def add(self, record: Record) -> None:
        """Note a picture."""
        self.tagged += record.tagged
        if (key := (record.source, record.frame)) in self._boxes:
            self._sizes[key] = (record.width, record.height)

    def remarks(self, file: BoxFile, sources: Sequence[Source]) -> list[str]:
        """What is odd about the boxes of ``file``, of what was not told when it was read."""
        where = f"boxes={file.path}"
        wanted = [key for key in self._boxes if key[1] % self._frame_step == 0]
        unread = [key for key in wanted if key not in self._sizes]
        remarks = []
        if unread:
            source, frame = sources[min(unread)[0]], min(unread)[1]
            first = f"frame {frame} of {source.path.name}" if source.is_video else source.path.name
            lost = sum(len(self._boxes[key].scores) for key in unread)
            remarks.append(f"{where}: {lost} boxes lie on pictures that are not there (the first: {first})")
        read = list(self._sizes)
        if read:
            counts = [len(self._boxes[key].scores) for key in read]
            of_box = np.repeat(np.arange(len(read)), counts)
            boxes = np.concatenate([self._boxes[key].xywh_px for key in read])
            sizes = dict(enumerate(self._sizes.values()))
            remarks += [f"{where}: {odd}" for odd in odd_boxes(boxes, of_box, sizes) if odd not in file.told]
        return remarks
