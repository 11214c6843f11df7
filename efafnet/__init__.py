"""EFAFNet on Ray: in a checkout the sub-packages are the folders beside this one; in a wheel they are inside it."""

from pathlib import Path

if (Path(__file__).resolve().parent.parent / "pipelines" / "__main__.py").is_file():
    __path__ = [str(Path(__file__).resolve().parent.parent)]
