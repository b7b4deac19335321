"""Which copy of which index owns a collection on a server, recorded in the collection's metadata.

Qdrant replaces metadata without a comparison, so the right to write is a token: whoever begins to
write puts a new one there and reads it back, and stops when it finds another one later. Of two
copies that begin at once, the last one goes on. What the other one wrote in between, one batch or
`PAUSE` seconds at most, is there, but it puts no manifest in force.
"""

from __future__ import annotations

import socket
import time
import uuid
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from cart_qdrant.errors import MismatchError
from cart_qdrant.storage.protocol import Store

OWNER_KEY = "cart-qdrant"
"""First part of a metadata key; the payload field of the identifiers follows after a colon."""
PAUSE = 2.0
"""Seconds between two looks at the token while a run writes."""
_REPAIR = (
    "Copy the index folder of that revision here; or, if it is lost or the collection was restored "
    "from a snapshot, use this one: `cartq doctor --fix`."
)


@dataclass(frozen=True, slots=True)
class Owner:
    """The owner of a collection.

    Attributes:
        index: Id of the index.
        revision: Revision of its manifest.
        previous: Revision that is valid, too, while a run replaces the manifest.
        writer: Token of the run that began to write last.
        folder: Machine and index folder of that run.
        moved: Whether that index has its points elsewhere now, or does not have all of them here
            yet: it may be copied here again.
    """

    index: str
    revision: str
    previous: str | None = None
    writer: str | None = None
    folder: str | None = None
    moved: bool = False

    def accepts(self, revision: str) -> bool:
        """Whether the collection was written with this revision of the manifest."""
        return revision in (self.revision, self.previous)

    @property
    def place(self) -> str:
        """Where the index folder is that wrote last, for messages."""
        return self.folder or "another copy of the index folder"


def check_owner(store: Store, key: str, index: str | None) -> Owner | None:
    """Refuse a collection that belongs to another index.

    Args:
        store: The collection.
        key: Payload field of the identifiers.
        index: Id of the index that asks; None for an index that is about to be made.

    Returns:
        The recorded owner; None where no index owns the collection.

    Raises:
        MismatchError: Another index owns it; both ids are named.
    """
    recorded = store.info().metadata.get(f"{OWNER_KEY}:{key}")
    if recorded is None:
        return None
    owner = Owner(
        recorded.get("index", ""), recorded.get("revision", ""), recorded.get("previous"),
        recorded.get("writer"), recorded.get("folder"), bool(recorded.get("moved")),
    )  # fmt: skip
    if owner.index != index:
        raise MismatchError(
            f"The collection at {store.location} belongs to the index {owner.index}, not to "
            f"{index or 'a new one'}.",
            "Open that index, or use another collection; delete the collection if that index no "
            "longer exists.",
        )
    return owner


def set_owner(store: Store, key: str, owner: Owner) -> None:
    """Record the owner of a collection."""
    store.set_metadata(f"{OWNER_KEY}:{key}", {k: v for k, v in asdict(owner).items() if v})


class Ownership:
    """The right of one open index to write to its collection.

    Args:
        store: The collection.
        key: Payload field of the identifiers.
        index: Id of the index.
        root: The index folder.
    """

    def __init__(self, store: Store, key: str, index: str, root: Path) -> None:
        self._store, self._key, self._index = store, key, index
        self._token = uuid.uuid4().hex[:12]
        self._before: str | None = None
        """The token that was there before ours; a server may still show it for a moment."""
        self._begun = False
        self._looked = 0.0
        self._recorded: set[str] = set()
        """Revisions that this run has recorded; the same holds for them."""
        self._root = root
        self._folder = f"{socket.gethostname()}:{root}"

    def owner(self) -> Owner | None:
        """The recorded owner.

        Raises:
            MismatchError: It is another index.
        """
        return check_owner(self._store, self._key, self._index)

    def refusal(self, owner: Owner, revision: str) -> MismatchError:
        """What to tell where the collection was written with another revision of the index."""
        return MismatchError(
            f"The collection at {self._store.location} was last written with the revision "
            f"{owner.revision!r} by {owner.place}, but {self._root} has {revision!r}.",
            _REPAIR,
        )

    def before_write(self, revision: str) -> None:
        """Refuse to write where another copy of the index has written since this one was opened.

        Args:
            revision: Revision of the manifest in force.

        Raises:
            MismatchError: It has; both revisions or folders are named.
        """
        if not self._begun:
            owner = self.check(revision) or Owner(self._index, revision)
            self._record(replace(owner, moved=False), owner.writer)
            self.check(revision)
        elif time.monotonic() - self._looked >= PAUSE:
            self.check(revision)

    def check(self, revision: str) -> Owner | None:
        """Look at once whether this index may still write; see `before_write`.

        Returns:
            The recorded owner.
        """
        owner = self.owner()
        self._looked = time.monotonic()
        if owner is None:
            return None
        is_ours = owner.writer in (None, self._token, self._before)
        # While another folder replaces its manifest, `previous` is for those who read.
        accepted = owner.accepts(revision) and (
            owner.revision == revision or owner.folder == self._folder
        )
        if not accepted and not (is_ours and owner.revision in self._recorded):
            raise self.refusal(owner, revision)
        if self._begun and not is_ours:
            raise MismatchError(
                f"{owner.place} began to write to the collection at {self._store.location} after "
                f"this run of {self._folder} had begun.",
                "Two copies of one index cannot write at once: keep one of them. What is not "
                "complete is completed by its next run.",
            )
        return owner

    def replace_revision(self, revision: str, previous: str, *, trust: bool = False) -> None:
        """Announce a revision before the manifest has it: both are valid.

        Args:
            revision: The next revision.
            previous: Revision in force.
            trust: Whether to take the collection over from any other copy.

        Raises:
            MismatchError: Another copy has written meanwhile, or does so now.
        """
        owner = self.owner() if trust else self.check(previous)
        before = None if owner is None else owner.writer
        self._record(Owner(self._index, revision, previous), before)
        self.check(previous)

    def confirm_revision(self, revision: str) -> None:
        """Record that the manifest has a revision, which alone is valid from then on."""
        self._record(Owner(self._index, revision), self._before)

    def _record(self, owner: Owner, before: str | None) -> None:
        """Record an owner, with the token of this run in the place of another one."""
        if before != self._token:
            self._before = before
        self._begun = True
        self._recorded.add(owner.revision)
        set_owner(self._store, self._key, replace(owner, writer=self._token, folder=self._folder))
