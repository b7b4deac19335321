"""Filter expressions: what they select equals a plain predicate, and bad ones are refused."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from qdrant_client import QdrantClient, models

from cart_qdrant.errors import UsageError
from cart_qdrant.records import Modality
from cart_qdrant.search.filters import (
    MOST_CHARACTERS,
    MOST_CONDITIONS,
    MOST_VALUES,
    merge_filters,
    parse_filter,
)
from cart_qdrant.storage.requests import FieldCondition, Filter, to_client

VALUES = [
    2020, "2020", 2020.0, 2021, "2021", -3, 1.5, "1.5", True, "true", "True", False, "false",
    0, "", "gopro", "dji", "a, b", "a dog surfing", "Dog", "2020-06-01", "2020-06-01T12:30:00Z",
    "2020-06-02", "2019-01-01T00:00:00+02:00", 2**60, str(2**60), None, [2020, "dji"], [],
]  # fmt: skip
MISSING = object()


@pytest.fixture(scope="module")
def client() -> QdrantClient:
    client = QdrantClient(":memory:")
    client.create_collection("c", vectors_config={})
    points = [
        models.PointStruct(id=n, vector={}, payload={"k": v, "m": "video" if n % 2 else "image"})
        for n, v in enumerate(VALUES)
    ]
    points.append(models.PointStruct(id=len(VALUES), vector={}, payload={"modality": "audio"}))
    client.upsert("c", points)
    return client


def select(client: QdrantClient, filter: Filter | None) -> set[int]:
    rows, _ = client.scroll("c", scroll_filter=to_client(filter), limit=1000)
    return {int(row.id) for row in rows}


def as_number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def as_time(text: object) -> datetime | None:
    if not isinstance(text, str) or len(text) < 10:
        return None
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        return None
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def equals(stored: object, wanted: str) -> bool:
    """What `key=wanted` promises about one stored value."""
    if stored == wanted:
        return True
    if isinstance(stored, bool):
        return wanted.lower() == str(stored).lower()
    if isinstance(stored, int | float):
        whole = wanted.lstrip("+-").isdigit()  # compared without rounding
        return stored == (int(wanted) if whole else as_number(wanted))
    if isinstance(stored, str) and wanted.lower() in ("true", "false"):
        return stored in (wanted.lower(), wanted.capitalize(), wanted.upper())
    time, limit = as_time(stored), as_time(wanted)
    if time is None or limit is None:
        return False
    return limit <= time < limit + timedelta(days=1) if len(wanted) == 10 else time == limit


def compares(stored: object, op: str, wanted: str) -> bool:
    """What `key<op>wanted` promises about one stored value."""
    number = as_number(wanted)
    left: object
    right: object
    if number is not None:
        if isinstance(stored, bool) or not isinstance(stored, int | float):
            return False
        left, right = stored, number
    else:
        left, right = as_time(stored), as_time(wanted)
        if left is None or right is None:
            return False
        if len(wanted) == 10 and op in ("<=", ">"):
            right += timedelta(days=1)
            op = {"<=": "<", ">": ">="}[op]
    return {"<": left < right, "<=": left <= right, ">": left > right, ">=": left >= right}[op]  # type: ignore[operator]


def holds(test: object, stored: object) -> bool:
    items = stored if isinstance(stored, list) else [] if stored is MISSING else [stored]
    return any(test(item) for item in items if item is not None)  # type: ignore[operator]


WORDS = [
    "2020", "2021", "-3", "1.5", "true", "True", "false", "0", "gopro", "dji", "Dog", "nothing",
    "2020-06-01", "2020-06-01T12:30:00", "2018-12-31T22:00:00Z", str(2**60), str(2**60 + 1), "+3",
]  # fmt: skip
RANGE_WORDS = ["2020", "0", "-3", "1.5", "2020-06-01", "2020-06-01T12:30:00Z", "2019-01-01"]
equalities = st.tuples(
    st.sampled_from(["=", "!=", "=="]), st.lists(st.sampled_from(WORDS), min_size=1, max_size=3)
)
ranges = st.tuples(
    st.sampled_from(["<", "<=", ">", ">="]), st.sampled_from(RANGE_WORDS).map(lambda w: [w])
)


@settings(max_examples=150, deadline=None)
@given(terms=st.lists(st.one_of(equalities, ranges), max_size=3))
def test_selects_what_a_plain_predicate_selects(
    client: QdrantClient, terms: list[tuple[str, list[str]]]
) -> None:
    def wanted(stored: object) -> bool:
        for op, words in terms:
            if op in ("=", "==", "!="):
                found = holds(lambda v, ws=words: any(equals(v, w) for w in ws), stored)
                if found == (op == "!="):
                    return False
            elif not holds(lambda v, o=op, w=words[0]: compares(v, o, w), stored):
                return False
        return True

    filter = parse_filter([f"k{op}{','.join(words)}" for op, words in terms])
    expected = {n for n, v in enumerate([*VALUES, MISSING]) if wanted(v)}
    assert select(client, filter) == expected


def test_quotes_keep_commas_and_mean_text(client: QdrantClient) -> None:
    index = {repr(v): n for n, v in enumerate(VALUES)}
    assert select(client, parse_filter(['k="a, b"'])) == {index["'a, b'"]}
    assert select(client, parse_filter(['k=""'])) == {index["''"]}
    assert select(client, parse_filter(['k="2020"'])) == {index["'2020'"]}
    both = {index["'a, b'"], index["'gopro'"]}
    assert select(client, parse_filter(['k="a, b", gopro'])) == both


def test_words_and_modality(client: QdrantClient) -> None:
    index = {repr(v): n for n, v in enumerate(VALUES)}
    assert select(client, parse_filter(["k~surfing dog"])) == {index["'a dog surfing'"]}
    assert select(client, parse_filter([], Modality.AUDIO)) == {len(VALUES)}
    assert select(client, parse_filter(["k=gopro"], Modality.AUDIO)) == set()
    assert parse_filter([]) is None


def test_spaces_and_paths() -> None:
    assert parse_filter([" year >= 3 "]) == parse_filter(["year>=3"])
    keys = {}
    for key in ("cart.p1", "captions[].text", "größe.tag", "my key", '"a.b=c".d', "tags[0]"):
        filter = parse_filter([f"{key}>1"])
        assert filter is not None and isinstance(filter.must, list)
        (condition,) = filter.must
        assert isinstance(condition, FieldCondition)
        keys[key] = condition.key
    assert keys == {
        "cart.p1": "cart.p1",
        "captions[].text": "captions[].text",
        "größe.tag": '"größe".tag',
        "my key": '"my key"',
        '"a.b=c".d': '"a.b=c".d',
        "tags[0]": "tags[0]",
    }


@pytest.mark.parametrize(
    "bad",
    ["", "year", "=3", "year=", "year>=", "year>=abc", "date<2020-13-01", "a=>3", "a=b,,c", 'a="b',
     'a=b"c', "a..b=1", ".a=1", "a.=1", "[]=1", 'a"b=1', "a~", 'a~""', "year>1e999", "year><3"],
)  # fmt: skip
def test_bad_syntax_is_refused_with_an_example(bad: str) -> None:
    with pytest.raises(UsageError, match="year=2020"):
        parse_filter([bad])


def test_last_day_of_the_calendar() -> None:
    assert parse_filter(["d<=9999-12-31", "d=9999-12-31", "n=" + "9" * 400]) is not None


@given(text=st.text(max_size=20))
def test_any_text_is_a_filter_or_a_usage_error(text: str) -> None:
    try:
        filter = parse_filter([text])
    except UsageError:
        return
    assert filter is not None
    to_client(filter).model_dump_json()


def test_merge_is_and(client: QdrantClient) -> None:
    year, text = parse_filter(["k>=2020"]), parse_filter(["k!=2021"])
    assert merge_filters() is None and merge_filters(None, None) is None
    assert merge_filters(None, year) is year
    both = select(client, merge_filters(year, None, text))
    assert both == select(client, year) & select(client, text) != select(client, year)


KEYS = st.from_regex(r"[^\"=!<>~\[\]\.\s][^\"=!<>~\[\]\.]{0,8}[^\"=!<>~\[\]\.\s]", fullmatch=True)


@settings(max_examples=60, deadline=None)
@given(key=KEYS)
def test_any_plain_key_is_a_path_for_both_engines(key: str) -> None:
    client = QdrantClient(":memory:")
    client.create_collection("c", vectors_config={})
    client.upsert("c", [models.PointStruct(id=1, vector={}, payload={key: "x"})])
    filter = parse_filter([f"{key}=x"])
    assert select(client, filter) == {1}


LONG = 100_000
"""Characters of a condition that nobody wrote by hand."""


@pytest.mark.parametrize(
    "expression",
    [
        " " * LONG, "a" * LONG, "a" + " " * LONG, " " * LONG + "=1", '"' * LONG, '"' + "a" * LONG,
        "a=" + " " * LONG + '"', "a=" + "1" * LONG, "a=" + "1," * (LONG // 2), "a" * LONG + "=1",
        "a=" + '"x" ' * (LONG // 4), "=" * LONG, "!" * LONG, "a" + "[" * LONG + "=1",
        "a" + ".b" * (LONG // 2) + "=1", "a>=" + "1" * LONG + "x", "\0" * LONG, "\u202e" * LONG,
    ],
)  # fmt: skip
def test_a_long_condition_is_refused_by_its_length(expression: str) -> None:
    with pytest.raises(UsageError, match=r"\d+ characters, but may have") as refused:
        parse_filter([expression])
    assert len(str(refused.value)) < 2_000
    # At the limit it is read to its end: a pattern with two ways to go on would not come back.
    with pytest.raises(UsageError) as refused:
        parse_filter([expression[: MOST_CHARACTERS - 1].replace(",", "") + '"'])
    assert len(str(refused.value)) < 10_000


def test_many_conditions_and_many_values_are_refused_by_their_number() -> None:
    assert parse_filter(["a=1"] * MOST_CONDITIONS) is not None
    with pytest.raises(UsageError, match=f"{MOST_CONDITIONS + 1} conditions"):
        parse_filter(["a=1"] * (MOST_CONDITIONS + 1))
    assert parse_filter(["a=" + ",".join("b" * MOST_VALUES)]) is not None
    with pytest.raises(UsageError, match=f"more than {MOST_VALUES} values"):
        parse_filter(["a=" + ",".join("b" * (MOST_VALUES + 1))])
    with pytest.raises(UsageError, match="a list of conditions"):
        parse_filter("year>=2020")


@pytest.mark.parametrize("expression", ["a=\ud800", "\udfff=1", 'a="\udc80"'])
def test_what_no_store_can_hold_is_refused(expression: str) -> None:
    with pytest.raises(UsageError, match="not UTF-8"):
        parse_filter([expression])


@settings(max_examples=500)
@given(expression=st.text('a1"=!<>~., []\t\0\u202e-+e', max_size=40))
def test_every_text_is_a_filter_or_refused(expression: str) -> None:
    try:
        found = parse_filter([expression])
    except UsageError as error:
        assert "cannot be read" in str(error)
    else:
        assert found is not None
