"""The list of images in a COCO file: ids, names, sizes, and finding an image by whatever an entry calls it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from efafnet.pipelines.formats.annotations import ImageEntry
from efafnet.pipelines.formats.rejects import Reject
from efafnet.pipelines.formats.values import MAX_PX, integer, no_integer, number, shown, text, told


class ImageTable:
    """Images by id and by name."""

    def __init__(self, entries: list[Any], *, named: bool) -> None:
        """``named`` images need a ``file_name``: those that are to be opened."""
        self.by_id: dict[int, ImageEntry] = {}
        self.rejects: list[Reject] = []
        self._named = named
        self._by_name: dict[str, ImageEntry | None] | None = None
        for entry in entries:
            self._add(entry)

    @classmethod
    def of(cls, images: Iterable[ImageEntry]) -> ImageTable:
        """The table of images that were read before."""
        table = cls([], named=False)
        table.by_id.update((image.image_id, image) for image in images)
        return table

    def repeated(self) -> list[str]:
        """A remark on files that are listed under several ids, as where one set was joined to itself; else none."""
        ids: dict[str, list[int]] = {}
        for image in self.by_id.values():
            ids.setdefault(image.file_name, []).append(image.image_id)
        several = {name: found for name, found in ids.items() if name and len(found) > 1}
        if not several:
            return []
        name, found = next(iter(several.items()))
        return [
            f"{len(several)} files are listed under several ids ({name}: {found[0]} and {found[1]}): their persons "
            "count once for each"
        ]

    def find(self, value: Any) -> ImageEntry | None:
        """The image that an entry of the same file means: by id, or by its file's name, with or without ending.

        A name counts if one image alone has it; of a path of another machine its last part does.
        """
        if type(value) is int:
            return self.by_id.get(value)
        found = integer(value)
        if found is not None:
            return self.by_id.get(found)
        return self._called(value) if isinstance(value, str) else None

    def find_from_outside(self, value: Any) -> ImageEntry | None:
        """The same for an entry of another file, which may number images otherwise; None where :meth:`ambiguous`."""
        return None if self.ambiguous(value) else self.find(value)

    def ambiguous(self, value: Any) -> str:
        """Why text may mean two images: it is the name of one and the id of another. Empty where it does not."""
        if not isinstance(value, str) or (number := integer(value)) is None:
            return ""
        by_id, named = self.by_id.get(number), self._called(value)
        if by_id is None or named is None or by_id is named:
            return ""
        return f"is the id of {by_id.file_name} and the name of {named.file_name}; write ids as numbers, or whole names"

    def _called(self, name: str) -> ImageEntry | None:
        names = self._names()
        return names[name] if name in names else names.get(PureWindowsPath(name).name)

    def _names(self) -> dict[str, ImageEntry | None]:
        if self._by_name is None:
            self._by_name = {}
            for image in self.by_id.values():
                path = PurePosixPath(image.file_name)
                for name in {image.file_name, path.name, path.stem}:
                    self._by_name[name] = None if name in self._by_name else image
        return self._by_name

    def _add(self, entry: Any) -> None:
        found = _image(entry, named=self._named)
        if isinstance(found, str):
            self.rejects.append(Reject("image_entry_invalid", found, persons=0))
        elif found.image_id in self.by_id:
            known = self.by_id[found.image_id].file_name
            detail = f"image id {found.image_id} is already taken by {known or 'another image'}"
            name = found.file_name or None
            self.rejects.append(Reject("duplicate_image_id", detail, found.image_id, None, name, persons=0))
        else:
            self.by_id[found.image_id] = found


def _image(entry: Any, *, named: bool) -> ImageEntry | str:
    """The image that an entry describes, or what is wrong with it."""
    if not isinstance(entry, dict):
        return f"an image entry must be an object; got {shown(entry)}"
    image_id = integer(entry.get("id"))
    if image_id is None:
        return f"image id {no_integer(entry.get('id'))}"
    name = text(entry.get("file_name"))
    if name is None and named:
        given = entry.get("file_name")
        what = told(entry, "file_name") if given is None else f"no file_name but {shown(given)}"
        return f"image {image_id} has {what}"
    sides = []
    for side in ("width", "height"):
        value = entry.get(side)
        size = integer(value)
        if value is not None and (size is None or not 0 < size <= MAX_PX):
            rule = "must be a positive integer, or left out: the image says it"
            return f"image {image_id}: {side} {rule}; got {shown(value)}"
        sides.append(size)
    crowding = number(entry.get("crowdIndex", entry.get("crowd_index")))
    # Half a size says nothing: both are taken from the image then.
    width, height = sides if None not in sides else (None, None)
    return ImageEntry(image_id, name or "", width, height, crowding)
