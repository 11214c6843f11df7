"""What a JSON document of another layout than the one asked for is: other tools' by their keys, lists in objects."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_COCO = frozenset({"images", "annotations"})
_OF_OBJECTS: Mapping[str, frozenset[str]] = {
    "COCO annotations": _COCO,
    "labelme's file of one image": frozenset({"shapes", "imagePath"}),
    "OpenPose's file of one picture": frozenset({"people"}),
    "VGG Image Annotator's project": frozenset({"_via_img_metadata"}),
    "mmpose's predictions of one file": frozenset({"instance_info"}),
    "Datumaro's annotations": frozenset({"items", "categories"}),
    "Labelbox's export": frozenset({"data_row", "projects"}),
    "detect's description of the detections beside it": frozenset({"detections", "detector"}),
}
_OF_ENTRIES: Mapping[str, frozenset[str]] = {
    "Label Studio's tasks": frozenset({"data", "annotations"}),
    "COCO results": frozenset({"image_id", "keypoints"}),
    "detections in COCO's results format": frozenset({"image_id", "bbox"}),
}
"""Keys of the first entry of a list."""


def looks_like(content: Any) -> str:
    """What a document of another layout seems to be, as the end of an error's sentence; empty where nobody knows."""
    if isinstance(content, str):
        return "; it is one text: JSON that was written as JSON again?"
    if isinstance(content, list):
        first = content[0] if content else None
        if isinstance(first, dict) and first.keys() >= _COCO:
            return f"; it is a list of {len(content)} COCO annotations: write each to a file of its own"
        known = _known(first, _OF_ENTRIES)
        return f"; these look like {known}" if known else ""
    known = _known(content, _OF_OBJECTS)
    if known:
        return f"; this looks like {known}"
    inner = _coco_inside(content)
    if inner:
        return f"; COCO annotations stand under {inner!r}: write that object alone to a file"
    inside = _list_inside(content)
    return f"; the list under {inside!r} seems to be it: write that list alone to a file" if inside else ""


def _known(entry: Any, layouts: Mapping[str, frozenset[str]]) -> str:
    if not isinstance(entry, dict):
        return ""
    return next((name for name, keys in layouts.items() if keys <= entry.keys()), "")


def _coco_inside(content: Any) -> str:
    """Key of the first object in an object that is in COCO's layout."""
    items = content.items() if isinstance(content, dict) else ()
    return next((str(key) for key, value in items if isinstance(value, dict) and value.keys() >= _COCO), "")


def _list_inside(content: Any) -> str:
    """Key of the only list of entries about images that an object holds."""
    if not isinstance(content, dict):
        return ""
    found = [
        key
        for key, value in content.items()
        if isinstance(value, list) and value and isinstance(value[0], dict) and "image_id" in value[0]
    ]
    return str(found[0]) if len(found) == 1 else ""
