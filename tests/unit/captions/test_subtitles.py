"""Subtitles: what is written is read back, and nothing breaks the parser."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cart_qdrant.captions.subtitles import Cue, parse_subtitles
from cart_qdrant.captions.text import MAX_CHARS, clean_text

WORDS = st.text(st.characters(categories=("Ll", "Lu", "Nd")), min_size=1, max_size=8).map(
    lambda word: "a" + word
)
LINES = st.lists(WORDS, min_size=1, max_size=5).map(" ".join)
CUES = st.lists(
    st.tuples(st.integers(0, 9_999_999), st.integers(1, 60_000), st.lists(LINES, min_size=1)),
    max_size=8,
)


def srt_time(ms: int, comma: str = ",") -> str:
    return f"{ms // 3_600_000:02}:{ms // 60_000 % 60:02}:{ms // 1000 % 60:02}{comma}{ms % 1000:03}"


@given(
    cues=CUES, newline=st.sampled_from(["\n", "\r\n", "\r"]), vtt=st.booleans(), bom=st.booleans()
)
def test_written_cues_are_read_back(
    cues: list[tuple[int, int, list[str]]], newline: str, vtt: bool, bom: bool
) -> None:
    out = ["WEBVTT", "", "NOTE a remark", ""] if vtt else []
    for n, (start, length, lines) in enumerate(cues, 1):
        times = (srt_time(start, ".,"[not vtt]), srt_time(start + length, ".,"[not vtt]))
        out += [str(n), " --> ".join(times), *lines, ""]
    read = parse_subtitles("\ufeff" * bom + newline.join(out))
    wanted = sorted(
        (
            (start / 1000, (start + length) / 1000, clean_text(" ".join(lines)))
            for start, length, lines in cues
        ),
        key=lambda cue: cue[:2],
    )
    assert read.problems == ()
    assert [cue.text for cue in read.cues] == [text for _, _, text in wanted]
    for cue, (start_s, end_s, _) in zip(read.cues, wanted, strict=True):
        assert (cue.start, cue.end) == pytest.approx((start_s, end_s))


@given(
    st.lists(
        st.one_of(
            st.text(max_size=30),
            st.sampled_from(
                ["", "1", "00:01 --> 00:02", "00:00:01,5 --> 00:00:00,1", "-->", "<i>", "&lt;b"]
            ),
        ),
        max_size=12,
    ).map("\n".join)
)
def test_any_text_gives_clean_ordered_cues(text: str) -> None:
    read = parse_subtitles(text)
    starts = [cue.start for cue in read.cues]
    assert starts == sorted(starts)
    for cue in read.cues:
        assert 0 <= cue.start < cue.end < float("inf")
        assert cue.text == clean_text(cue.text)
        assert 0 < len(cue.text) <= MAX_CHARS
    arrows = [n for n, line in enumerate(re.split("\r\n|\r|\n", text), 1) if "-->" in line]
    assert {line for line, _ in read.problems} <= set(arrows)


@pytest.mark.parametrize(
    ("marked", "plain"),
    [
        ("<i>A dog</i> <b>surfs</b>", "A dog surfs"),
        ("<v Bob>Look:</v> <c.loud>a dog</c>", "Look: a dog"),
        ("a<00:00:01.500> dog", "a dog"),
        (r"{\an8}A dog", "A dog"),
        ('<font color="#fff">A dog</font>', "A dog"),
        ("salt &amp; pepper &lt;3", "salt & pepper <3"),
        ("3 < 4 and 5 > 4", "3 < 4 and 5 > 4"),
    ],
)
def test_markup_is_removed_and_nothing_else(marked: str, plain: str) -> None:
    read = parse_subtitles(f"00:01.000 --> 00:02.000 align:start\n{marked}\n")
    assert read.cues == (Cue(plain, 1.0, 2.0),)


def test_a_missing_blank_line_does_not_join_two_cues() -> None:
    text = "1\n00:00:01,000 --> 00:00:02,000\none\n2\n00:00:03,000 --> 00:00:04,000\ntwo"
    assert parse_subtitles(text).cues == (Cue("one", 1, 2), Cue("two", 3, 4))


def test_a_bad_cue_is_told_with_its_line_and_the_rest_is_read() -> None:
    text = (
        "1\n00:00:01 -> 00:00:02\nlost\n\n"
        "2\n00:00:xx --> 00:00:02\nlost\n\n"
        "3\n00:00:05,0 --> 00:00:04,0\nlost\n\n"
        "4\n00:00:06,25 --> 00:00:07,5\nkept\n"
    )
    read = parse_subtitles(text)
    assert read.cues == (Cue("kept", 6.25, 7.5),)
    assert [line for line, _ in read.problems] == [6, 10]
    assert "'00:00:xx --> 00:00:02'" in read.problems[0][1]
    assert "4 s" in read.problems[1][1] and "5 s" in read.problems[1][1]


def test_cues_without_words_are_dropped() -> None:
    assert parse_subtitles("00:01 --> 00:02\n♪ ♪\n\n00:03 --> 00:04\n<i></i>\n").cues == ()
