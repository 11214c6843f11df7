"""Which version of the drawing code this is."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib import resources


@cache
def drawing_digest() -> str:
    """Return 16 hexadecimal digits over the code that draws: sets with another one hold other pictures."""
    total = hashlib.sha256()
    for file in sorted(resources.files("efafnet.pipelines.synth").iterdir(), key=lambda file: file.name):
        if file.name.endswith(".py"):
            total.update(f"{file.name}\0".encode() + hashlib.sha256(file.read_bytes()).digest())
    return total.hexdigest()[:16]
