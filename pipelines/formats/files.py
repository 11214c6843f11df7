"""JSON from outside: read whole, or refused in one sentence that says what the file is instead."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_PACKED = {b"\x1f\x8b": "compressed by gzip", b"PK\x03\x04": "a ZIP archive", b"BZh": "compressed by bzip2"}
"""How files begin that hold another one."""


def read_json(path: Path, what: str = "annotation file", setting: str | None = None) -> Any:
    """Content of a JSON file, which errors call ``what``, or by its ``setting``.

    Raises ValueError where it is missing, a folder, not JSON, or nested deeper than any annotation.
    """
    name = f"{what} {path}" if setting is None else f"{setting}={path}"
    if path.is_dir():
        raise ValueError(f"{name} is a folder; give a JSON file (are two arguments swapped?)")
    if not path.is_file():
        absent = "does not exist" if setting is None else "there is no such file"
        raise ValueError(f"{name}{' ' if setting is None else ': '}{absent}; give the path of a JSON file")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{name} cannot be read ({error.strerror or error})") from error
    try:
        return json.loads(data)
    except RecursionError as error:
        raise ValueError(f"{path} is not valid JSON for our purpose: its brackets are nested too deep") from error
    except ValueError as error:
        # Beside what is no JSON: bytes that are no text, and integers of more digits than Python takes.
        reason = str(error).partition(";")[0]
        raise ValueError(f"{path} is not valid JSON ({reason}); {_instead(data, error)}") from error


def _instead(data: bytes, error: ValueError) -> str:
    """What bytes that are no JSON are, and what to do about it."""
    if not data.strip():
        return "the file is empty"
    for start, kind in _PACKED.items():
        if data.startswith(start):
            return f"it is {kind}: unpack it"
    if isinstance(error, UnicodeDecodeError):
        return "save it as UTF-8, or it is another format"
    lines = data.split(b"\n", 2)
    if len(lines) > 1 and all(line.lstrip().startswith(b"{") and line.rstrip().endswith(b"}") for line in lines[:2]):
        return "it holds a JSON document in each line: make them one"
    return "it may be truncated or another format"
