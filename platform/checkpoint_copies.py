"""Copies of a run's checkpoints on any file system that pyarrow opens: S3, Google Cloud Storage, Azure, HDFS, a mount.

Such stores cannot rename a directory at once. So a copy is whole when it holds ``meta.json``, which is written last and
removed first, and which names the digest of every other file.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from efafnet.platform.credentials import full
from efafnet.platform.storage import atomic_directory, write_bytes

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

_LAST = "meta.json"


class CheckpointCopies:
    """The copies of one run, in ``ADDRESS/RUN``. All methods raise OSError where the store does not answer."""

    def __init__(self, address: str, run: str) -> None:
        """Open the store.

        Raises:
            ValueError: pyarrow knows no file system of this address.
            OSError: the store does not answer, or refuses.
        """
        from pyarrow import ArrowInvalid, ArrowNotImplementedError
        from pyarrow.fs import FileSystem

        try:
            self._files, root = FileSystem.from_uri(full(address))
        except (ArrowInvalid, ArrowNotImplementedError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(
                f"{address} is no address pyarrow can open ({reason}); write for example s3://BUCKET/runs, "
                "gs://BUCKET/runs or file:///mnt/runs"
            ) from error
        self._root = f"{root.rstrip('/')}/{run}"

    def names(self) -> list[str]:
        """Whole copies, sorted."""
        from pyarrow.fs import FileSelector

        found = self._files.get_file_info(FileSelector(self._root, allow_not_found=True, recursive=True))
        return sorted(Path(info.path).parent.name for info in found if info.base_name == _LAST)

    def push(self, directory: Path) -> None:
        """Copy a checkpoint there; a kill on the way leaves no copy."""
        folder = f"{self._root}/{directory.name}"
        self._files.create_dir(folder, recursive=True)
        for path in sorted(directory.iterdir(), key=lambda path: (path.name == _LAST, path.name)):
            _send(self._files, path, f"{folder}/{path.name}")

    def push_meta(self, directory: Path) -> None:
        """Copy what a checkpoint says about itself there, whose copy has the rest."""
        _send(self._files, directory / _LAST, f"{self._root}/{directory.name}/{_LAST}")

    def pull(self, name: str, directory: Path) -> None:
        """Copy a checkpoint back to ``directory``, which then is whole or absent."""
        from pyarrow.fs import FileSelector

        with atomic_directory(directory, overwrite=True) as folder:
            for info in self._files.get_file_info(FileSelector(f"{self._root}/{name}")):
                with self._files.open_input_stream(info.path) as source, (folder / info.base_name).open("wb") as file:
                    while block := source.read(1 << 20):
                        file.write(block)

    def remove(self, name: str) -> None:
        """Remove a copy."""
        self._files.delete_file(f"{self._root}/{name}/{_LAST}")
        self._files.delete_dir(f"{self._root}/{name}")

    def push_file(self, path: Path) -> None:
        """Copy one small file of the run there."""
        self._files.create_dir(self._root, recursive=True)
        _send(self._files, path, f"{self._root}/{path.name}")

    def pull_file(self, path: Path) -> bool:
        """Copy a file of that name back to ``path``; return whether there is one."""
        from pyarrow.fs import FileType

        there = f"{self._root}/{path.name}"
        if self._files.get_file_info(there).type != FileType.File:
            return False
        with self._files.open_input_stream(there) as source:
            write_bytes(path, source.read())
        return True


def _send(files: FileSystem, path: Path, there: str) -> None:
    with path.open("rb") as file, files.open_output_stream(there) as target:
        while block := file.read(1 << 20):
            target.write(block)
