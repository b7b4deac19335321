"""The options of an ingestion and the report of what it did."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cart_qdrant.compute import Compute
from cart_qdrant.config import SegmentConfig
from cart_qdrant.records import Failure


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestOptions:
    """What to ingest, and how."""

    paths: Sequence[Path]
    captions: Path | None = None
    """A caption table outside the usual names."""
    use_captions: bool = True
    """False stores no captions; other columns of caption tables are still stored."""
    exclude: Sequence[str] = ()
    follow: bool = False
    """Take also links that lead out of `paths`."""
    prune: bool = False
    """Remove the points of files under `paths` that were deleted, or are excluded."""
    force: bool = False
    """Prune also where so much is gone that a disk may not be mounted."""
    verify: bool = False
    """Hash also the files that look unchanged."""
    dry_run: bool = False
    segments: SegmentConfig | None = None
    """How files are cut into segments; None cuts them as the index does."""


@dataclass(slots=True)
class IngestReport:
    """What an ingestion did, or would do in a dry run; `to_json` is the `--json` contract.

    Attributes:
        files: Media files found.
        ignored: Files and folders left out by ignore files, or as thumbnails and bins.
        segments: Points written for new or changed content.
        unchanged: Files whose content and captions are stored already.
        hashed: Files whose content was hashed to tell whether it is stored.
        removed: Files whose points were removed.
        held_back: Folders of which so much is gone that nothing was removed without force.
        renamed: Files that took over the vectors of a deleted file with the same content.
        recaptioned: Files of which only captions or columns changed.
        embed_seconds: Part of `seconds` spent on embedding media and captions.
        wait_seconds: Part in which the embedder waited for decoded media.
        write_seconds: Part spent on writing points, without identifiers.
        identify_seconds: Part spent on fitting or assigning identifiers and writing them.
        media_seconds: Length of the audio and video files that were embedded.
        compute: Where the embedder computed, and in which number format; None where it did not.
    """

    files: int = 0
    ignored: int = 0
    segments: int = 0
    unchanged: int = 0
    hashed: int = 0
    removed: int = 0
    renamed: int = 0
    recaptioned: int = 0
    would_ingest: list[str] = field(default_factory=list)
    would_remove: list[str] = field(default_factory=list)
    dry_run: bool = False
    held_back: list[Failure] = field(default_factory=list)
    failed: list[Failure] = field(default_factory=list)
    warnings: list[Failure] = field(default_factory=list)
    identifiers: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    embed_seconds: float = 0.0
    wait_seconds: float = 0.0
    write_seconds: float = 0.0
    identify_seconds: float = 0.0
    media_seconds: float = 0.0
    compute: Compute | None = None

    def to_json(self) -> dict[str, Any]:
        """The report as one JSON object; a dry run adds `would_ingest` and `would_remove`."""
        out: dict[str, Any] = {
            "files": self.files,
            "ignored": self.ignored,
            "segments": self.segments,
            "unchanged": self.unchanged,
            "hashed": self.hashed,
            "removed": self.removed,
            "renamed": self.renamed,
            "recaptioned": self.recaptioned,
            "held_back": [failure.to_json() for failure in self.held_back],
            "failed": [failure.to_json() for failure in self.failed],
            "warnings": [failure.to_json() for failure in self.warnings],
            "identifiers": self.identifiers,
            "seconds": round(self.seconds, 3),
            "embed_seconds": round(self.embed_seconds, 3),
            "wait_seconds": round(self.wait_seconds, 3),
            "write_seconds": round(self.write_seconds, 3),
            "identify_seconds": round(self.identify_seconds, 3),
            "media_seconds": round(self.media_seconds, 3),
            "compute": None if self.compute is None else self.compute.to_json(),
        }
        if self.dry_run:
            out |= {"would_ingest": self.would_ingest, "would_remove": self.would_remove}
        return out
