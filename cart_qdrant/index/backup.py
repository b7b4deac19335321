"""Writes an index into one file, with all its points, and restores it from there."""

from __future__ import annotations

import shutil
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cart_qdrant.embedders.sentence_transformers import PREFIX
from cart_qdrant.errors import MismatchError, UsageError
from cart_qdrant.files import artifact_hash, make_folder, rename_durably
from cart_qdrant.index.archive import unpack
from cart_qdrant.index.folder import IndexFolder
from cart_qdrant.index.index import Index
from cart_qdrant.index.manifest import Manifest
from cart_qdrant.index.migrate import compare_points, copy_indexes, copy_points
from cart_qdrant.progress import Reporter, Silent
from cart_qdrant.storage.factory import open_store
from cart_qdrant.storage.protocol import MEDIA
from cart_qdrant.storage.store_info import StoreInfo

_UNFINISHED = ("changed", "replaced.json")
"""Files of a run that was stopped: identifiers are not up to date, or replaced points are left."""


def backup(index: Index, file: Path, reporter: Reporter | None = None) -> int:
    """Write an index with all its points into a tar.gz file, which appears whole or not at all.

    The file is about as large as the vectors, which hardly compress.

    Args:
        index: Open index; its lock is held.
        file: The file to write; a backup that is there is replaced.
        reporter: Is called with the progress.

    Returns:
        How many points the file holds.

    Raises:
        UsageError: The collection is filled by others, a run was stopped before its end, or `file`
            exists and is not a backup.
        StoreError: A store failed, or a copied point differs.
    """
    index.require_own()
    pending = [name for name in _UNFINISHED if (index.folder.work / name).exists()]
    if pending:
        raise UsageError(
            f"A run on {index.folder.root} was stopped before its end ({pending[0]}).",
            "Let `cartq ingest` come to its end first.",
        )
    reporter = reporter or Silent()
    file = Path(file).absolute()
    if file.exists() and not (file.is_file() and tarfile.is_tarfile(file)):
        raise UsageError(f"{file} exists and is not a backup.", "Name another file.")
    count = index.store.count()
    with tempfile.TemporaryDirectory(dir=file.parent, prefix=".cartq-backup-") as where:
        folder = IndexFolder(Path(where) / "index")
        folder.root.mkdir()
        for artifact in index.manifest.artifacts():
            source = index.folder.path(artifact)
            if source.is_dir():
                shutil.copytree(source, folder.root / artifact.name)
            else:
                shutil.copy2(source, folder.root / artifact.name)
        store = open_store(StoreInfo(), folder.store)
        try:
            index.make_collection(store)
            copy_indexes(index.store, store)
            reporter.phase("points", count)
            vectors = [MEDIA, index.caption_vector]
            copy_points(index.store, store, vectors, reporter)
            compare_points(index.store, store, vectors, count)
        finally:
            store.close()
        manifest = replace(index.manifest, store=StoreInfo())
        folder.manifest.write_bytes(manifest.to_bytes())
        reporter.phase("writing", None)
        draft = Path(where) / "draft.tar"
        # The store keeps sparse files: hundreds of megabytes of zeros.
        with tarfile.open(draft, "w:gz", compresslevel=1) as archive:
            for entry in sorted(folder.root.iterdir()):
                if entry.suffix not in (".lock", ".sock"):
                    archive.add(entry, entry.name)
        rename_durably(draft, file)
    return count


def restore(file: Path, root: Path, *, models: Sequence[str] = ()) -> None:
    """Make the index folder `root` from a file that `backup` wrote, with an embedded store.

    The file may come from others. Its points, identifiers and trained model are taken; where the
    points were and which hashes were checked is not, and each file's hash is computed. `migrate`
    moves the index to a server.

    Args:
        file: The backup.
        root: Folder of the index: new or empty.
        models: Embedders that may be downloaded, such as `st:clip-ViT-B-32`.

    Raises:
        UsageError: The folder is not empty, there is no such file, or the index needs a model that
            would be downloaded and was not named.
        MismatchError: The file is not a backup, or one of its files has another hash.
        StoreError: The disk has too little room.
    """
    file, root = Path(file), Path(root).absolute()
    if not file.is_file():
        raise UsageError(f"There is no file {file}.")
    folder = IndexFolder(root)
    if root.exists() and any(root.iterdir()) and not folder.only_locked():
        raise UsageError(
            f"{root} is not empty.",
            "Restore into another --index; to move an existing index, use `cartq migrate --to`.",
        )
    make_folder(root.parent)
    with tempfile.TemporaryDirectory(dir=root.parent, prefix=".cartq-restore-") as where:
        made = IndexFolder(Path(where) / "index")
        unpack(file, made.root)
        manifest = _checked(made, file, models)
        made.manifest.write_bytes(manifest.to_bytes())
        if root.exists():
            folder.lock_file.unlink(missing_ok=True)
            root.rmdir()
        rename_durably(made.root, root)


def _checked(made: IndexFolder, file: Path, models: Sequence[str]) -> Manifest:
    """The manifest of an unpacked backup, for an embedded store.

    Raises:
        UsageError: Its embedder would be downloaded, and is not in `models`.
        MismatchError: There is none, or a file that it names is not what it says.
    """
    try:
        data = made.manifest.read_bytes()
    except OSError as error:
        raise MismatchError(
            f"{file} is not a backup of an index: it has no manifest.json.",
            "Make one with `cartq backup FILE`.",
        ) from error
    manifest = Manifest.from_bytes(data, f"manifest.json of {file}")
    name = manifest.embedder.name
    if name.startswith(PREFIX) and name not in models:
        raise UsageError(
            f"The index in {file} was made with the model {name!r}, which would be downloaded and "
            "run when it is searched.",
            f"If you trust whoever made the backup, and the model: --model {name}",
        )
    for artifact in manifest.artifacts():
        path = made.root / artifact.name
        found = artifact_hash(path) if path.exists() else "none"
        if found != artifact.hash:
            raise MismatchError(
                f"{artifact.name} in {file} has hash {found}, but its manifest says "
                f"{artifact.hash}.",
                "The backup is damaged: use another one.",
            )
    return replace(manifest, store=StoreInfo())
