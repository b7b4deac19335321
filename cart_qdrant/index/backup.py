"""An index as one file: its folder and all its points, wherever they are."""

from __future__ import annotations

import json
import os
import shutil
import tarfile
import tempfile
from dataclasses import replace
from pathlib import Path

from cart_qdrant.errors import MismatchError, UsageError
from cart_qdrant.index.ingest_report import Reporter, Silent
from cart_qdrant.index.library import Library
from cart_qdrant.index.migrate import compare_points, copy_points
from cart_qdrant.persistence import IndexFolder, StoreInfo

_LEFT_OUT = frozenset({"store", "store.json", "work", "lock", "manifest.json"})


def backup(library: Library, file: Path, reporter: Reporter | None = None) -> int:
    """Write an index into a tar file, points and all; it appears whole or not at all.

    The lock is held. The file is about as large as the index; vectors do not compress.

    Returns:
        How many points it holds.

    Raises:
        UsageError: The collection is filled by others.
        StoreError: A store failed, or a copied point differs.
    """
    library.require_own()
    reporter = reporter or Silent()
    file = Path(file).absolute()
    count = library.store.count()
    with tempfile.TemporaryDirectory(dir=file.parent, prefix=".cartq-backup-") as where:
        folder = IndexFolder(Path(where) / "index")
        folder.root.mkdir()
        for entry in library.folder.root.iterdir():
            if entry.name not in _LEFT_OUT and not entry.name.startswith("."):
                if entry.is_dir():
                    shutil.copytree(entry, folder.root / entry.name)
                else:
                    shutil.copy2(entry, folder.root / entry.name)
        store = Library.reach(folder, StoreInfo())
        try:
            library.make_collection(store)
            reporter.phase("points", count)
            copy_points(library.store, store, reporter)
            compare_points(library.store, store, count)
        finally:
            store.close()
        manifest = replace(library.manifest, store=StoreInfo())
        folder.manifest.write_bytes(manifest.to_bytes())
        reporter.phase("writing", None)
        draft = Path(where) / "draft.tar"
        with tarfile.open(draft, "w") as archive:
            archive.add(folder.root, ".")
        with draft.open("rb") as written:
            os.fsync(written.fileno())
        draft.replace(file)
    return count


def restore(file: Path, root: Path) -> None:
    """Make the index folder `root` from a file of `backup`: embedded; see `migrate` for a server.

    Raises:
        UsageError: There is an index already, or no such file.
        MismatchError: The file is no backup.
    """
    file, root = Path(file), Path(root).absolute()
    if not file.is_file():
        raise UsageError(f"There is no file {file}.")
    if root.exists() and any(root.iterdir()):
        raise UsageError(f"{root} is not empty.", "Restore into another --index.")
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root.parent, prefix=".cartq-restore-") as where:
        made = Path(where) / "index"
        try:
            with tarfile.open(file) as archive:
                archive.extractall(made, filter="data")
            manifest = json.loads((made / "manifest.json").read_bytes())
        except (tarfile.TarError, OSError, ValueError) as error:
            raise MismatchError(
                f"{file} is no backup of an index: {error}.", "Make one with `cartq backup FILE`."
            ) from error
        if not isinstance(manifest, dict) or "embedder" not in manifest:
            raise MismatchError(f"{file} holds no manifest of an index.")
        if root.exists():
            root.rmdir()
        made.rename(root)
