"""Records survive the payload, and ids depend on nothing but what they name."""

from __future__ import annotations

import json
import uuid

from hypothesis import given
from hypothesis import strategies as st

from cart_qdrant.records import Caption, CaptionSource, Hit, Identifier, Modality, Segment

times = st.floats(0, 1e6).map(lambda t: round(t, 3))
captions = st.builds(
    Caption,
    st.text(),
    st.sampled_from(CaptionSource),
    *[st.none()] * 2,
) | st.builds(Caption, st.text(), st.sampled_from(CaptionSource), times, times)
segments = st.builds(Segment, st.text(min_size=1), st.sampled_from(Modality), times, times)


@given(captions)
def test_caption_round_trip(caption: Caption) -> None:
    assert Caption.from_payload(json.loads(json.dumps(caption.to_payload()))) == caption


@given(st.lists(st.integers(0, 2**20), min_size=1, max_size=6), st.integers(0, 2**20))
def test_identifier_round_trip(codes: list[int], u: int) -> None:
    identifier = Identifier(tuple(codes), u)
    payload = json.loads(json.dumps(identifier.to_payload()))
    assert Identifier.from_payload(payload) == identifier
    assert payload["id"].split("-") == [str(c) for c in (*codes, u)]
    for n in range(1, len(codes) + 1):
        assert payload["id"].startswith(payload[f"p{n}"] + "-")


@given(segments, segments)
def test_segment_ids_are_equal_when_segments_are(one: Segment, other: Segment) -> None:
    assert uuid.UUID(one.id).version == 5
    assert one.id == Segment(one.path, one.modality, one.start, one.end).id
    assert (one.id == other.id) == (one == other)


def test_segment_id_is_fixed_for_ever() -> None:
    """Another value here would orphan the points of every index."""
    expected = "a18f6783-b0c2-511a-8d9c-4ed396b61bdd"
    assert Segment("a/b.mp4", Modality.VIDEO, 1.5, 2.0).id == expected


def test_a_name_that_is_not_utf8_has_an_id() -> None:
    assert uuid.UUID(Segment("caf\udce9.jpg", Modality.IMAGE).id)


@given(times, times, times, times)
def test_caption_covers_what_it_overlaps(a: float, b: float, start: float, end: float) -> None:
    assert Caption("x", CaptionSource.TXT).covers(start, end)
    timed = Caption("x", CaptionSource.SUBTITLE, a, b)
    assert timed.covers(start, end) == (a < end and b > start)


def test_weak_sources() -> None:
    weak = {source for source in CaptionSource if Caption("x", source).is_weak}
    assert weak == {CaptionSource.FILENAME, CaptionSource.LABEL}


def test_hit_has_the_keys_of_the_contract() -> None:
    hit = Hit(1, "id", "a.jpg", Modality.IMAGE, 0.0, 0.0, 0.5, "dense", None, None, {"a": 1})
    assert list(hit.to_json()) == [
        *("rank", "id", "path", "modality", "start", "end", "score", "lane"),
        *("identifier", "caption", "payload"),
    ]
    assert json.loads(json.dumps(hit.to_json()))["modality"] == "image"
