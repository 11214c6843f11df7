"""JSON from outside: read whole, or refused in one sentence that says what the file is instead."""

from __future__ import annotations

import json
import re
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

from efafnet.pipelines.formats.values import shown

_UNPACK = "unpack it"
_KINDS: tuple[tuple[bytes, str, str], ...] = (
    (b"\x1f\x8b", "compressed by gzip", _UNPACK),
    (b"PK\x03\x04", "a ZIP archive", _UNPACK),
    (b"BZh", "compressed by bzip2", _UNPACK),
    (b"\xfd7zXZ\0", "compressed by xz", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "compressed by Zstandard", _UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    (b"\x89HDF", "an HDF5 file, as those of SLEAP and MATLAB 7.3", "export COCO keypoints"),
    (b"\xff\xd8\xff", "a JPEG image", "are two arguments swapped?"),
    (b"\x89PNG", "a PNG image", "are two arguments swapped?"),
    (b"version https://git-lfs", "a pointer of Git LFS", "fetch the file itself: git lfs pull"),
    (b"<?xml", "XML, as CVAT's and VOC's annotations", "export COCO keypoints"),
    (b"<", "XML or HTML", "if a server answered in place of the file, fetch it again"),
    (b"{'", "Python's notation, in single quotes", "write it by json.dump"),
    (b"[{'", "Python's notation, in single quotes", "write it by json.dump"),
)
"""How files of other kinds begin, what they are, and what to do about it."""
_TAR_MAGIC = slice(257, 262), b"ustar"
# A bracket that closes after a comma, within the characters around an error.
_TRAILING_COMMA = re.compile(r",\s*[}\]]")
_AROUND = 200
_SHOWN_BYTES = 30
_MOST_LISTS = 20
"""Most keys of an outermost object that are looked at: COCO's files have five."""
_LISTED = 10_000
"""Files of a folder that are counted."""


def read_json(path: Path, what: str = "annotation file", setting: str | None = None) -> Any:
    """Content of a JSON file, which errors call ``what``, or by its ``setting``.

    Raises ValueError where it is missing, a folder, not JSON, nested deeper than any annotation, or where the document
    has two lists of one name, of which JSON's readers take the last.
    """
    name = f"{what} {path}" if setting is None else f"{setting}={path}"
    if path.is_dir():
        raise ValueError(f"{name} is a folder; give a JSON file{_inside(path)}")
    if not path.is_file():
        absent = "does not exist" if setting is None else "there is no such file"
        raise ValueError(f"{name}{' ' if setting is None else ': '}{absent}; give the path of a JSON file")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{name} cannot be read ({error.strerror or error})") from error
    try:
        content = json.loads(data)
        twice = _twice(content, data)
    except RecursionError as error:
        raise ValueError(f"{path} is not valid JSON for our purpose: its brackets are nested too deep") from error
    except ValueError as error:
        # Beside what is no JSON: bytes that are no text, and integers of more digits than Python takes.
        reason = str(error).partition(";")[0]
        raise ValueError(f"{path} is not valid JSON ({reason}); {_instead(data, error)}") from error
    if twice:
        raise ValueError(f"{path} has {', '.join(map(repr, twice))} more than once; join what stands under both")
    return content


def _inside(folder: Path) -> str:
    """What to do about a folder that stands in a file's place."""
    endings = Counter(path.suffix.lower() for path in islice(folder.iterdir(), _LISTED))
    ending, number = max(endings.items(), key=lambda item: item[1], default=("", 0))
    if ending in (".json", ".txt", ".xml") and number > 1:
        return f", one for all images: it holds {number} {ending} files, as of tools that write one for each"
    return " (are two arguments swapped?)"


def _twice(content: Any, data: bytes) -> list[str]:
    """Keys of the document's outermost object that occur in it more than once.

    Objects of an entry for each image, of thousands of keys, are no data set's: nobody looks through the file for each.
    """
    if not isinstance(content, dict) or len(content) > _MOST_LISTS:
        return []
    # Nearly always a key's text occurs once in the whole file, and nobody has to look again.
    suspects = {key for key in content if data.count(json.dumps(key).encode()) > 1}
    if not suspects:
        return []
    keys: list[str] = []

    def finished(pairs: list[tuple[str, Any]]) -> None:
        keys[:] = [key for key, _ in pairs]

    # The outermost object is the last that a reader finishes.
    json.loads(data, object_pairs_hook=finished)
    return [key for key, number in Counter(keys).items() if number > 1]


def _instead(data: bytes, error: ValueError) -> str:
    """What bytes that are no JSON are, and what to do about it."""
    begin = data.lstrip()
    if not begin:
        return "the file is empty"
    for start, kind, remedy in _KINDS:
        if begin.startswith(start):
            return f"it is {kind}: {remedy}"
    place, magic = _TAR_MAGIC
    if data[place] == magic:
        return f"it is a tar archive: {_UNPACK}"
    if not begin.startswith((b"{", b"[")):
        return f"it begins with {shown(begin[:_SHOWN_BYTES])}, a data set's JSON with {{ or [: another format?"
    if isinstance(error, UnicodeDecodeError):
        return "save it as UTF-8, or it is another format"
    lines = data.split(b"\n", 2)
    if len(lines) > 1 and all(line.lstrip().startswith(b"{") and line.rstrip().endswith(b"}") for line in lines[:2]):
        return "it holds a JSON document in each line: make them one"
    return _fault(error) if isinstance(error, json.JSONDecodeError) else "it may be truncated or another format"


def _fault(error: json.JSONDecodeError) -> str:
    """What went wrong in text that begins as JSON."""
    if error.msg == "Extra data":
        return "another document follows the first one: make them one"
    around = error.doc[max(0, error.pos - _AROUND) : error.pos + _AROUND]
    place = min(error.pos, _AROUND)
    if any(found.start() <= place < found.end() for found in _TRAILING_COMMA.finditer(around)):
        return "the comma before that bracket is one too many"
    return "it may be truncated or another format"
