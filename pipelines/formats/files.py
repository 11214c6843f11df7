"""JSON from outside: read whole, or refused in one sentence that says what the file is instead."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


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
        return json.loads(path.read_bytes())
    except RecursionError as error:
        raise ValueError(f"{path} is not valid JSON for our purpose: its brackets are nested too deep") from error
    except ValueError as error:
        # Beside what is no JSON: bytes that are no text, and integers of more digits than Python takes.
        reason = str(error).partition(";")[0]
        raise ValueError(f"{path} is not valid JSON ({reason}); it may be truncated or another format") from error
    except OSError as error:
        raise ValueError(f"{name} cannot be read ({error.strerror or error})") from error
