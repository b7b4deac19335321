"""A filter finds in a collection of others what it finds in the same points as ours."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from qdrant_client import QdrantClient, models

from cart_qdrant.storage.attached import AttachedStore
from cart_qdrant.storage.attached_mapping import AttachedMapping
from cart_qdrant.storage.attachment import Attachment
from cart_qdrant.storage.protocol import MEDIA
from cart_qdrant.storage.server import ServerStore

BARE = Attachment(vector="clip", modality="video")
"""Nothing is known of the payloads, and some have fields with our names."""
PLAIN = Attachment(
    vector="clip", modality_field="type", path="meta.file", start="from", end="to",
    captions=["title", "tags"], words="title",
)  # fmt: skip
OBJECTS = Attachment(
    vector="clip", modality="audio", path="meta.file", captions=["notes"], words="notes[].text"
)
PAYLOADS: list[dict[str, Any]] = [
    {"type": "image", "meta": {"file": "a.jpg"}, "title": "a red car", "tags": ["red", "car"]},
    {"type": "video", "meta": {"file": "b c.mp4"}, "from": 3, "to": 5.5, "title": "a dog"},
    {"type": "audio", "meta": {}, "from": "soon", "notes": [{"text": "a bell", "by": "me"}]},
    {"type": "image", "meta": {"file": "point:1"}, "from": True, "title": "", "tags": []},
    {"type": "image", "meta": {"file": None}, "from": -2, "notes": [{"text": "a dog"}]},
    {"type": "video", "path": "their own", "modality": "their own", "start": 7, "title": "dog"},
    {"type": "audio", "captions": [{"text": "their own"}], "end": 1, "notes": []},
]  # fmt: skip
IDS: list[int | str] = [0, 1, 2, 3, str(uuid.UUID(int=4)), 5, 6]
WORDS = [
    "image", "video", "audio", "a.jpg", "b c.mp4", "point:1", "point:2", "point:x", "point", "dog",
    f"point:{IDS[4]}", "a dog", "a red car", "red", "a bell", "metadata", "their own", "me", "",
]  # fmt: skip
KEYS = [
    "path", "modality", "start", "end", "captions[].text", "captions[].source", "captions", "title",
    "year", "meta.file", "captions[].by",
]  # fmt: skip

words = st.sampled_from(WORDS)
numbers = st.sampled_from([-2.0, 0.0, 3.0, 5.5])
matches = st.one_of(
    st.builds(models.MatchValue, value=words),
    st.builds(models.MatchAny, any=st.lists(words, max_size=3)),
    st.builds(
        lambda some: models.MatchExcept(**{"except": some}), st.lists(words, min_size=1, max_size=3)
    ),
    st.builds(models.MatchText, text=words),
    st.builds(models.MatchPhrase, phrase=words),
    st.builds(models.MatchTextAny, text_any=words),
)
ranges = st.builds(
    models.Range, gte=st.none() | numbers, lt=st.none() | numbers, gt=st.none() | numbers
).filter(lambda one: one.model_dump(exclude_none=True))


def at(key: str) -> models.PayloadField:
    return models.PayloadField(key=key)


@st.composite
def field_conditions(draw: st.DrawFn, keys: list[str]) -> models.FieldCondition:
    key = draw(st.sampled_from(keys))
    if key in ("start", "end"):
        return models.FieldCondition(key=key, range=draw(ranges))
    match = draw(matches)
    if key.startswith("captions") and isinstance(match, models.MatchExcept):
        match = models.MatchAny(any=match.except_)  # two texts of one point may differ in it
    if key == "captions":
        match = models.MatchValue(value="a dog")  # objects equal no value
    return models.FieldCondition(key=key, match=match)


conditions = st.one_of(
    field_conditions(KEYS),
    st.builds(lambda key: models.IsEmptyCondition(is_empty=at(key)), st.sampled_from(KEYS)),
    st.builds(
        lambda key: models.IsNullCondition(is_null=at(key)),
        st.sampled_from([one for one in KEYS if "." not in one]),
    ),
    st.builds(
        lambda ids: models.HasIdCondition(has_id=ids), st.lists(st.sampled_from(IDS), max_size=3)
    ),
    st.builds(
        lambda inner: models.NestedCondition(
            nested=models.Nested(key="captions", filter=models.Filter(must=[inner]))
        ),
        field_conditions(["text", "source", "by"]),
    ),
)
lists = st.none() | st.lists(conditions, min_size=1, max_size=3)
flat = st.builds(models.Filter, must=lists, should=lists, must_not=lists)
filters = st.builds(models.Filter, must=st.lists(conditions | flat, max_size=2), must_not=lists)


@pytest.fixture(scope="module", params=[BARE, PLAIN, OBJECTS], ids=["bare", "plain", "objects"])
def stores(request: pytest.FixtureRequest) -> tuple[AttachedStore, ServerStore]:
    """The collection of others, and one of ours with the same points."""
    how, client = request.param, QdrantClient(":memory:")
    params = models.VectorParams(size=2, distance=models.Distance.COSINE)
    client.create_collection("theirs", {"clip": params})
    client.create_collection("ours", {MEDIA: params})
    mapping = AttachedMapping(how)
    for n, (id, payload) in enumerate(zip(IDS, PAYLOADS, strict=True)):
        x = [1.0, float(n)]
        theirs = models.PointStruct(id=id, vector={"clip": x}, payload=payload)
        mapped = mapping.payload(id, payload)
        client.upsert("theirs", [theirs])
        client.upsert("ours", [models.PointStruct(id=id, vector={MEDIA: x}, payload=mapped)])
    return AttachedStore(ServerStore(client, "theirs"), how), ServerStore(client, "ours")


@given(given_filter=filters)
@settings(max_examples=400)
def test_a_filter_finds_the_same_points(
    stores: tuple[AttachedStore, ServerStore], given_filter: models.Filter
) -> None:
    theirs, ours = ([str(r.id) for r in one.scroll(given_filter)] for one in stores)
    assert theirs == ours
