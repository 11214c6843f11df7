"""What kind of file system a path lies on, as the kernel's table of mounts says."""

from __future__ import annotations

import functools
import re
from pathlib import Path

NETWORK_KINDS = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "lustre", "ceph", "beegfs", "gpfs", "glusterfs", "afs", "9p", "virtiofs"}
)
"""Kinds whose files lie on another machine: an error of theirs is SIGBUS in a memory map, and locks may be refused."""
_MOUNTS = Path("/proc/self/mountinfo")


def kind_of(path: Path) -> str:
    """Return the kind of the file system that holds ``path`` (or will hold it): ``ext4``, ``nfs4``, ``fuse.sshfs``, …

    Empty where the kernel has no table of mounts, as outside Linux.
    """
    try:
        table = _MOUNTS.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return ""
    place, kind = Path(path).absolute(), ""
    place, longest = place.resolve(), -1
    for mount, found in _parsed(table):
        # Of two mounts on one place the later one is seen.
        if len(mount.parts) >= longest and place.is_relative_to(mount):
            kind, longest = found, len(mount.parts)
    return kind


@functools.lru_cache(maxsize=4)
def _parsed(table: str) -> tuple[tuple[Path, str], ...]:
    """Mount point and kind of every line (proc(5): the kind follows a lone hyphen, odd characters are octal)."""
    found = []
    for line in table.splitlines():
        before, _, after = line.partition(" - ")
        point = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), before.split()[4])
        found.append((Path(point), after.split()[0]))
    return tuple(found)


def is_on_network(path: Path) -> bool:
    """Tell whether ``path`` lies on another machine's disks. Unknown FUSE file systems count: most of them do."""
    kind = kind_of(path)
    return kind in NETWORK_KINDS or kind.startswith("fuse.") or kind == "fuse"
