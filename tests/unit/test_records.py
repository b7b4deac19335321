"""Laws of the records: payloads go out and come back, ids depend on nothing else."""

from __future__ import annotations

import json
import uuid

from hypothesis import given
from hypothesis import strategies as st

from cart_qdrant.records import (
    WEAK_SOURCES,
    Caption,
    CaptionSource,
    Hit,
    Identifier,
    Modality,
    Segment,
    fixed,
)

seconds = st.floats(0, 1e6, allow_nan=False)
captions = st.one_of(
    st.builds(Caption, st.text(), st.sampled_from(CaptionSource)),
    st.builds(Caption, st.text(), st.sampled_from(CaptionSource), seconds, seconds),
)
segments = st.builds(Segment, st.text(), st.sampled_from(Modality), seconds, seconds)


@given(captions)
def test_caption_round_trips_through_json(caption: Caption) -> None:
    assert Caption.from_payload(json.loads(json.dumps(caption.to_payload()))) == caption
    assert caption.is_weak == (caption.source in WEAK_SOURCES)


@given(captions, seconds, seconds)
def test_untimed_captions_cover_all_and_timed_ones_what_they_touch(
    caption: Caption, a: float, b: float
) -> None:
    start, end = min(a, b), max(a, b)
    if caption.start is None or caption.end is None:
        assert caption.covers(start, end)
    else:
        assert caption.covers(start, end) == (caption.start < end and start < caption.end)


@given(st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=6), st.integers(0, 2**31 - 1))
def test_identifier_round_trips(codes: list[int], u: int) -> None:
    one = Identifier(tuple(codes), u)
    payload = json.loads(json.dumps(one.to_payload()))
    assert Identifier.from_payload(payload) == one
    assert payload["id"] == "-".join(map(str, [*codes, u]))
    assert payload["p1"] == str(codes[0])
    assert payload.keys() == {"id", "p1", "codes", "disambiguation"}


@given(segments, segments)
def test_segment_ids_are_equal_when_segments_are(a: Segment, b: Segment) -> None:
    def key(s: Segment) -> tuple[str, str, str, str]:
        return s.path, s.modality, f"{s.start:.3f}", f"{s.end:.3f}"

    assert uuid.UUID(a.id).version == 5
    assert a.id == Segment(a.path, a.modality, a.start, a.end).id
    assert (a.id == b.id) == (key(a) == key(b))


def test_segment_ids_do_not_change_between_versions() -> None:
    assert (
        Segment("a/b.mp4", Modality.VIDEO, 1.5, 3.25).id == "dc80206e-0496-56b4-a9c8-44c4c28e5f15"
    )


def test_name_that_is_not_utf8_has_an_id() -> None:
    assert Segment("caf\udce9.jpg", Modality.IMAGE).id != Segment("caf.jpg", Modality.IMAGE).id


def test_hit_shows_the_contract() -> None:
    hit = Hit(1, "x", "a.jpg", Modality.IMAGE, 0.0, 0.0, 0.5, "dense", "1-2-0", None, {"split": 1})
    out = json.loads(json.dumps(hit.to_json()))
    assert out == {
        "rank": 1,
        "id": "x",
        "path": "a.jpg",
        "modality": "image",
        "start": 0.0,
        "end": 0.0,
        "score": 0.5,
        "similarity": None,
        "confidence": None,
        "lane": "dense",
        "identifier": "1-2-0",
        "caption": None,
        "moment": None,
        "payload": {"split": 1},
    }


def test_nothing_has_no_minus() -> None:
    assert [fixed(x) for x in (-0.0, -0.0004, 0.0004, -0.0006, 1.5)] == [
        "0.000", "0.000", "0.000", "-0.001", "1.500",
    ]  # fmt: skip
    assert fixed(-0.004, 2) == "0.00" and fixed(-12, 0) == "-12"
