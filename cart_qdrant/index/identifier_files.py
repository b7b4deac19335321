"""The files of the identifiers in force: codebooks, prefix tree and item table."""

from __future__ import annotations

from cart_qdrant.arrays.mmap import map_arrays
from cart_qdrant.errors import MismatchError
from cart_qdrant.files import draft_path, file_hash, load_arrays, rename_durably
from cart_qdrant.identifiers.codec import (
    Codec,
)
from cart_qdrant.identifiers.item_table import ItemTable
from cart_qdrant.identifiers.trie import Trie
from cart_qdrant.index.index import Index
from cart_qdrant.index.manifest import Artifact


def load_codec(index: Index, *, mapped: bool = False) -> Codec | None:
    """The code books in force, or None before the first fit.

    Args:
        mapped: Whether they are read, for decoding alone, as they are looked at.
    """
    info = index.manifest.identifiers
    if info is None:
        return None
    path = index.folder.path(info.books)
    return Codec.from_arrays(map_arrays(path) if mapped else load_arrays(path), info.meta)


def load_trie(index: Index) -> Trie | None:
    """The prefix tree in force, or None before the first fit; it is read as it is walked.

    Raises:
        MismatchError: The file is missing, cut short, or holds another number of identifiers.
    """
    info = index.manifest.identifiers
    if info is None:
        return None
    path = index.folder.path(info.trie)
    trie = Trie.load(path)
    if len(trie) != info.count:
        raise MismatchError(
            f"{path} holds {len(trie)} identifiers, but the manifest says {info.count}.",
            "Mend: `cartq doctor --fix`.",
        )
    return trie


def load_table(index: Index) -> ItemTable | None:
    """What ranks the items; None before the first fit, and in an index of an older version.

    Raises:
        MismatchError: The file is missing, or cut short.
    """
    info = index.manifest.identifiers
    if info is None or info.items is None:
        return None
    return ItemTable.load(index.folder.path(info.items))


def save_part(index: Index, kind: str, part: Trie | ItemTable) -> Artifact:
    draft = draft_path(index.folder.work, kind)
    part.save(draft)
    digest = file_hash(draft)
    name = f"{kind}-{digest[:12]}.safetensors"
    rename_durably(draft, index.folder.root / name)
    return Artifact(name, digest)
