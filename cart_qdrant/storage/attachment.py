"""How a collection that others fill is read: which of its fields and vectors holds what."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Attachment:
    """How a collection that others fill is read. Payload fields are dotted paths: `meta.url`.

    Attributes:
        vector: Name of its media vector; "" where it has no name.
        key: Payload field that identifiers are written to, and the only one that is written.
        modality: Modality of all items, unless `modality_field` names a field that holds it.
        modality_field: Field that holds `image`, `video` or `audio`.
        modalities: Modalities that the embedder knows; items of other ones are left alone.
        path: Field that holds the name of the file; None takes the point's id.
        start: Field of the first second of an item.
        end: Field of its last second.
        captions: Fields that hold texts, lists of texts, or lists of objects with a `text`.
        words: Field whose words are searched.
        caption_vector: First of the two vectors that hold captions in turn; the name of the other
            one ends in `_2`. None where captions have no vector.
        given: What the user said of `path`, `modality`, `captions`, `start` and `end`; the others
            were guessed, and `sync` guesses them anew when they no longer fit.
    """

    vector: str
    key: str = "cart"
    modality: str = "image"
    modality_field: str | None = None
    modalities: list[str] = field(default_factory=lambda: ["image", "video", "audio"])
    path: str | None = None
    start: str | None = None
    end: str | None = None
    captions: list[str] = field(default_factory=list)
    words: str | None = None
    caption_vector: str | None = None
    given: list[str] = field(default_factory=list)
