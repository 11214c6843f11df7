"""Names of image files as other machines write them: backslashes, Unicode forms, URLs, absolute paths."""

from __future__ import annotations

import re
import unicodedata
from urllib.parse import unquote

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://[^/]*")
_DRIVE = re.compile(r"[A-Za-z]:$")
# Label Studio puts eight digits before the name of a file, Roboflow a digest and the old ending behind it.
_ADDED = (re.compile(r"[0-9a-f]{8}-(.+)"), re.compile(r"(.+)_(?:jpe?g|png|bmp|webp|tiff?)\.rf\.[0-9a-z]+"))


def name_parts(name: str) -> tuple[str, ...]:
    """Folders and file that a name consists of, in one Unicode form (NFC), without host, drive and empty parts."""
    host = _URL.match(name)
    if host is not None:
        # What a question mark or a hash begins belongs to the server.
        name = unquote(re.split(r"[?#]", name[host.end() :])[0])
    parts = unicodedata.normalize("NFC", name).replace("\\", "/").split("/")
    return tuple(part for part in parts if part not in ("", ".", "..") and not _DRIVE.match(part))


def spellings(part: str) -> list[str]:
    """A name in the Unicode forms that file systems keep: composed, and decomposed as macOS writes it."""
    return list(dict.fromkeys(unicodedata.normalize(form, part) for form in ("NFC", "NFD")))


def folded(part: str) -> str:
    """A name by which those are alike that look alike: of one case, with plain blanks, without signs of no width."""
    plain = unicodedata.normalize("NFKC", part)
    return "".join(c for c in plain if unicodedata.category(c) != "Cf").casefold()


def original_stems(stem: str) -> list[str]:
    """A file's name in small letters without its ending, then without what tools of annotation are known to add."""
    found = (added.fullmatch(stem) for added in _ADDED)
    return [stem, *(match[1] for match in found if match)]


def tails(name: str) -> list[tuple[str, ...]]:
    """Ends of a name from the longest to the file alone: where it may lie below another machine's folder.

    Then those of the name with ``%20`` and its like as what they stand for, and without blanks at its ends.
    """
    written, meant = name_parts(name), name_parts(unquote(name).strip())
    found = [parts[first:] for parts in (written, meant) for first in range(len(parts))]
    return list(dict.fromkeys(found))
