"""The files of the identifiers in force: codebooks, prefix tree and item table."""

from __future__ import annotations

from cart_qdrant.arrays.mmap import map_arrays
from cart_qdrant.errors import MismatchError
from cart_qdrant.files import draft_path, file_hash, load_arrays, rename_durably
from cart_qdrant.identifiers.item_table import ItemTable
from cart_qdrant.identifiers.quantizer import Codec
from cart_qdrant.identifiers.trie import Trie
from cart_qdrant.index.index import Index
from cart_qdrant.index.manifest import Artifact


def load_codec(index: Index, *, mapped: bool = False) -> Codec | None:
    """The codebooks in force; None before the first fit.

    Args:
        index: Open index.
        mapped: Whether to map the file instead of reading it, which is enough for decoding.

    Raises:
        MismatchError: The file is missing or was changed.
    """
    info = index.manifest.identifiers
    if info is None:
        return None
    path = index.folder.path(info.books)
    return Codec.from_arrays(map_arrays(path) if mapped else load_arrays(path), info.meta)


def load_trie(index: Index) -> Trie | None:
    """The prefix tree in force, memory-mapped; None before the first fit.

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
            "Repair the index: `cartq doctor --fix`.",
        )
    return trie


def load_table(index: Index) -> ItemTable | None:
    """The item table in force; None before the first fit.

    Raises:
        MismatchError: The file is missing or cut short.
    """
    info = index.manifest.identifiers
    return None if info is None else ItemTable.load(index.folder.path(info.items))


def save_part(index: Index, kind: str, part: Trie | ItemTable) -> Artifact:
    """Store a prefix tree (`trie`) or an item table (`items`) under a name that has its hash."""
    draft = draft_path(index.folder.work, kind)
    part.save(draft)
    digest = file_hash(draft)
    name = f"{kind}-{digest[:12]}.safetensors"
    rename_durably(draft, index.folder.root / name)
    return Artifact(name, digest)
