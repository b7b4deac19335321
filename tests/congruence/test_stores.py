"""Both stores give the same answers to the same random sequences of calls.

The embedded one is asked through the process that has it, so that its answers pass the wire, too.
"""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from qdrant_client import models

from cart_qdrant.errors import CartError
from cart_qdrant.storage.protocol import CAPTION, MEDIA, CollectionSpec, Store
from cart_qdrant.storage.server import ServerStore
from cart_qdrant.storage.shared import SharedStore

pytestmark = pytest.mark.filterwarnings("ignore:Generating overly large repr")

DIMS = {MEDIA: 4, CAPTION: 3}
SPEC = CollectionSpec(vectors=DIMS, keywords=("cart.id", "m"), texts=("captions[].text",))
IDS = [str(uuid.uuid5(uuid.NAMESPACE_OID, str(n))) for n in range(12)]
WORDS = ["dog", "cat", "surfing", "red"]

field = models.FieldCondition
scalars = st.sampled_from(
    [0, 1, 2, 1.5, "a", "b", True, False, None, [], [1, "a"], [None], {"x": 1}]
)
codes = st.lists(st.integers(0, 2), min_size=2, max_size=2)
captions = st.lists(
    st.lists(st.sampled_from(WORDS), min_size=1, max_size=3).map(lambda w: {"text": " ".join(w)}),
    max_size=2,
)
payloads = st.fixed_dictionaries(
    {"cart": codes.map(lambda c: {"id": f"{c[0]}-{c[1]}", "codes": c, "disambiguation": 0})},
    optional={
        "m": st.sampled_from(["image", "video"]),
        "v": scalars,
        "captions": captions,
        "d": st.sampled_from(["2020-01-01", "2020-06-01T10:00:00Z", "2021-01-01T00:00:00+02:00"]),
    },
)
floats = st.integers(-5, 5).map(float)


def vectors(width: int) -> st.SearchStrategy[list[float]]:
    return st.lists(floats, min_size=width, max_size=width).filter(any)


named = st.fixed_dictionaries({MEDIA: vectors(4)}, optional={CAPTION: vectors(3)})

leaves: st.SearchStrategy[Any] = st.one_of(
    st.sampled_from(["image", "video", "a", 1, True, False]).flatmap(
        lambda v: st.sampled_from(["m", "v"]).map(
            lambda k: field(key=k, match=models.MatchValue(value=v))
        )
    ),
    st.lists(st.sampled_from(["0-0", "1-2", "2-1"]), max_size=3).map(
        lambda v: field(key="cart.id", match=models.MatchAny(any=v))
    ),
    st.lists(st.integers(0, 2), min_size=1, max_size=2).map(
        lambda v: field(key="v", match=models.MatchExcept(**{"except": v}))
    ),
    st.sampled_from(["0-", "1", ""]).map(
        lambda v: field(key="cart.id", match=models.MatchPrefix(prefix=v))
    ),
    st.lists(st.sampled_from(WORDS), min_size=1, max_size=2).map(
        lambda w: field(key="captions[].text", match=models.MatchTextAny(text_any=" ".join(w)))
    ),
    st.integers(0, 2).map(lambda v: field(key="v", range=models.Range(gte=v))),
    st.integers(0, 2).map(lambda v: field(key="cart.codes", range=models.Range(lt=v))),
    st.sampled_from(["2020-06-01", "2020-12-31T22:00:00Z"]).map(
        lambda v: field(key="d", range=models.DatetimeRange(gte=v))
    ),
    st.integers(0, 2).map(lambda v: field(key="captions", values_count=models.ValuesCount(gt=v))),
    st.lists(st.sampled_from(IDS), max_size=4).map(lambda v: models.HasIdCondition(has_id=v)),
    st.just(models.HasVectorCondition(has_vector=CAPTION)),
    st.sampled_from(["v", "m", "captions", "zzz", "cart_2"]).map(
        lambda k: models.IsEmptyCondition(is_empty=models.PayloadField(key=k))
    ),
    st.just(models.IsNullCondition(is_null=models.PayloadField(key="v"))),
    st.sampled_from(WORDS).map(
        lambda w: models.NestedCondition(
            nested=models.Nested(
                key="captions",
                filter=models.Filter(must=[field(key="text", match=models.MatchText(text=w))]),
            )
        )
    ),
)


def combine(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[models.Filter]:
    some = st.lists(inner, min_size=1, max_size=2)
    return st.one_of(
        st.builds(models.Filter, must=some, must_not=st.none() | some),
        st.builds(models.Filter, should=some, must_not=st.none() | some),
        some.map(lambda c: models.Filter(min_should=models.MinShould(conditions=c, min_count=1))),
    )


leaf = st.deferred(lambda: leaves)  # kept short where Hypothesis prints it
filters = st.deferred(lambda: st.none() | combine(st.one_of(leaf, combine(leaf))))


def nearest(name: str, width: int) -> st.SearchStrategy[models.QueryRequest]:
    return st.builds(
        models.QueryRequest,
        query=vectors(width),
        using=st.just(name),
        filter=filters,
        limit=st.sampled_from([1, 3, 20]),
        offset=st.none() | st.integers(0, 3),
        score_threshold=st.none() | st.just(0.2),
        params=st.none() | st.just(models.SearchParams(exact=True)),
        with_payload=st.sampled_from([False, True, ["cart.id", "m"]]),
        with_vector=st.sampled_from([False, [MEDIA]]),
    )


requests = st.one_of(nearest(MEDIA, 4), nearest(CAPTION, 3))


def scores(hits: list[models.ScoredPoint]) -> list[float]:
    return [hit.score for hit in hits]


def assert_same_hits(
    one: list[models.ScoredPoint], two: list[models.ScoredPoint], *, cut: bool
) -> None:
    """Same scores; same points, except among ties at a cut end."""
    assert scores(one) == pytest.approx(scores(two), abs=1e-4)
    for a, b in ((one, two), (two, one)):
        by_id = {hit.id: hit for hit in b}
        for hit in a:
            if hit.id not in by_id:
                ends = [s for s in (one[0].score, one[-1].score) if abs(s - hit.score) < 1e-4]
                assert cut and ends, hit
            else:
                other = by_id[hit.id]
                assert hit.score == pytest.approx(other.score, abs=1e-4)
                assert (hit.payload or None) == (other.payload or None)
                assert_same_vectors(hit.vector, other.vector)


def assert_same_vectors(one: Any, two: Any) -> None:
    assert (one or {}).keys() == (two or {}).keys()
    for name in one or {}:
        np.testing.assert_allclose(one[name], two[name], atol=1e-5)


SCALARS = [0, 1, 2, 1.5, -1, "a", "a b", "2020-01-01", "2020-01-01T10:00:00Z", "", True, False]
STORED: list[Any] = [
    *SCALARS,
    None,
    [],
    [None],
    [1, "a", True],
    [[1]],
    {"x": 1},
    [{"x": 1}, {"x": "a"}],
]
DAYS = ["2020-01-01", "2020-01-01T10:00:00Z", "2019-12-31T23:00:00-02:00"]
MATCHES = [
    *(models.MatchValue(value=v) for v in SCALARS if not isinstance(v, float)),
    *(models.MatchAny(any=v) for v in ([1, 2], ["a", ""], [])),
    *(models.MatchExcept(**{"except": v}) for v in ([1, 2], ["a", ""], [])),
    *(models.MatchText(text=v) for v in ("a", "b a", "A", "")),
    *(models.MatchTextAny(text_any=v) for v in ("a z", "z", "")),
    *(models.MatchPhrase(phrase=v) for v in ("a b", "b a")),
    *(models.MatchPrefix(prefix=v) for v in ("a", "2020", "")),
    *(models.MatchSubstring(substring=v) for v in ("b", "-01", "")),
]
BOUNDS = [
    *(models.Range(**{side: v}) for side in ("gt", "gte", "lt", "lte") for v in (0, 1, 1.5)),
    *(models.DatetimeRange(**{side: v}) for side in ("gt", "gte", "lt", "lte") for v in DAYS),
]
COUNTS = [models.ValuesCount(**{side: v}) for side in ("gt", "lt", "gte", "lte") for v in (0, 1)]
KEYS = ["v", "v[]", "v[].x", "v.x", "v[0]", "zzz", "m"]
CONDITIONS: list[Any] = [
    *(field(key=k, match=match) for k in KEYS for match in MATCHES),
    *(field(key=k, range=bound) for k in KEYS for bound in BOUNDS),
    *(field(key=k, values_count=n) for k in KEYS for n in COUNTS),
    *(field(key=k, is_empty=yes) for k in KEYS for yes in (True, False)),
    *(field(key=k, is_null=yes) for k in KEYS for yes in (True, False)),
    *(models.IsEmptyCondition(is_empty=models.PayloadField(key=k)) for k in KEYS),
    *(models.IsNullCondition(is_null=models.PayloadField(key=k)) for k in KEYS),
    *(
        models.NestedCondition(
            nested=models.Nested(key="v", filter=models.Filter(must=[field(key="x", match=match)]))
        )
        for match in MATCHES
    ),
    models.HasIdCondition(has_id=[IDS[0], IDS[3], str(uuid.uuid4())]),
    models.HasVectorCondition(has_vector=CAPTION),
    models.HasVectorCondition(has_vector=MEDIA),
]


def shared_store(folder: Path) -> tuple[SharedStore, SharedStore]:
    """The store that has the engine open, and one that asks it."""
    host = shared(folder)
    host.create(SPEC)
    return host, shared(folder)


def shared(folder: Path) -> SharedStore:
    return SharedStore(folder / "store", lock_file=folder / "store.lock", patience=5)


def test_every_condition_selects_the_same_points(tmp_path: Path) -> None:
    host, edge = shared_store(tmp_path)
    local: Store = ServerStore.connect(":memory:")
    points = [
        models.PointStruct(
            id=str(uuid.uuid5(uuid.NAMESPACE_OID, str(n))),
            vector={MEDIA: [1.0, 0, 0, 0]} | ({CAPTION: [1.0, 0, 0]} if n % 2 else {}),
            payload={"v": v, "m": "a" if n % 2 else "b"} if n else {},
        )
        for n, v in enumerate([None, *STORED])
    ]
    for store in (edge, local):
        store.create(SPEC)
        store.upsert(points)

    def select(store: Store, filter: models.Filter) -> list[str]:
        return [str(row.id) for row in store.scroll(filter, with_payload=False)]

    differ = []
    assert host._host is not None and edge._host is None
    for condition in CONDITIONS:
        for filter in (models.Filter(must=[condition]), models.Filter(must_not=[condition])):
            if select(edge, filter) != select(local, filter):
                differ.append(filter.model_dump(exclude_none=True))
    assert not differ, "\n".join(map(str, differ))


class TwoStores(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        # In memory where there is such a folder: the engine waits for the disk at each flush.
        memory = Path("/dev/shm")
        self.folder = tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None)
        self.host, self.edge = shared_store(Path(self.folder.name))
        self.local: Store = ServerStore.connect(":memory:")
        for store in (self.edge, self.local):
            store.create(SPEC)

    def teardown(self) -> None:
        self.edge.close()
        self.host.close()
        self.local.close()
        self.folder.cleanup()

    def both(self, call: Callable[[Store], Any]) -> tuple[Any, Any]:
        def answer(store: Store) -> Any:
            try:
                return call(store)
            except CartError as error:
                return type(error)

        one, two = answer(self.edge), answer(self.local)
        assert isinstance(one, type) == isinstance(two, type), (one, two)
        return one, two

    def same(self, call: Callable[[Store], Any]) -> None:
        one, two = self.both(call)
        assert one == two

    @rule(points=st.dictionaries(st.sampled_from(IDS), st.tuples(named, payloads), min_size=3))
    def upsert(self, points: dict[str, Any]) -> None:
        structs = [models.PointStruct(id=i, vector=v, payload=p) for i, (v, p) in points.items()]
        self.same(lambda s: s.upsert(structs))

    @rule(
        i=st.sampled_from(IDS), vector=named, bad=st.sampled_from(["nan", "zero", "wide", "name"])
    )
    def refuse_a_batch_with_a_bad_vector(self, i: str, vector: Any, bad: str) -> None:
        broken = {
            "nan": {MEDIA: [float("nan"), 0, 0, 0]},
            "zero": {MEDIA: [0, 0, 0, 0]},
            "wide": {MEDIA: [1, 0, 0, 0, 0]},
            "name": {"other": [1, 0, 0, 0]},
        }[bad]
        structs = [
            models.PointStruct(id=i, vector=vector, payload={"bad": True}),
            models.PointStruct.model_construct(id=IDS[0], vector=broken, payload={}),
        ]
        one, two = self.both(lambda s: s.upsert(structs))
        assert one is two and isinstance(one, type)

    @rule(index=st.sampled_from([("v", "float"), ("d", "datetime"), ("m", "float")]))
    def create_range_index(self, index: Any) -> None:
        """An index changes no answer, whatever else the field holds."""
        self.same(lambda s: s.create_range_index(*index))

    @rule(ids=st.lists(st.sampled_from([*IDS, str(uuid.uuid4())]), max_size=4))
    def delete(self, ids: list[str]) -> None:
        self.same(lambda s: s.delete(ids))

    @rule(
        updates=st.lists(
            st.tuples(
                st.sampled_from(IDS),
                st.one_of(payloads, codes.map(lambda c: {"cart_2": {"id": str(c)}}), st.just({})),
            ),
            max_size=4,
        )
    )
    def set_payload(self, updates: Any) -> None:
        self.same(lambda s: s.set_payload(updates))

    @rule(key=st.sampled_from(["cart_2", "v", "m", "zzz", "a.b c"]))
    def delete_payload_key(self, key: str) -> None:
        self.same(lambda s: s.delete_payload_key(key))

    @rule(updates=st.dictionaries(st.sampled_from(IDS), vectors(3), max_size=3))
    def update_vectors(self, updates: dict[str, list[float]]) -> None:
        self.same(lambda s: s.update_vectors(CAPTION, list(updates.items())))

    @rule()
    def clear_vector(self) -> None:
        self.same(lambda s: s.clear_vector(CAPTION))
        self.same(lambda s: s.add_vector(CAPTION, 3))

    @rule(some=st.lists(filters, min_size=8, max_size=8))
    def count(self, some: list[models.Filter | None]) -> None:
        for filter in some:
            self.same(lambda s, f=filter: s.count(f))

    @rule(ids=st.lists(st.sampled_from(IDS), max_size=5), payload=st.booleans())
    def retrieve(self, ids: list[str], payload: bool) -> None:
        one, two = self.both(
            lambda s: s.retrieve(ids, with_payload=payload, with_vectors=[CAPTION])
        )
        self.assert_same_records(one, two)

    @rule(
        filter=filters,
        batch=st.integers(1, 5),
        payload=st.sampled_from([True, False, ["cart.id", "captions[].text"]]),
        names=st.sampled_from([[], [MEDIA], [MEDIA, CAPTION]]),
    )
    def scroll(self, filter: Any, batch: int, payload: Any, names: list[str]) -> None:
        one, two = self.both(
            lambda s: list(s.scroll(filter, with_payload=payload, with_vectors=names, batch=batch))
        )
        self.assert_same_records(one, two)
        assert [row.id for row in one] == sorted(row.id for row in one)

    def assert_same_records(self, one: Any, two: Any) -> None:
        assert [row.id for row in one] == [row.id for row in two]
        assert [row.payload or None for row in one] == [row.payload or None for row in two]
        for a, b in zip(one, two, strict=True):
            assert_same_vectors(a.vector, b.vector)

    @rule(batch=st.lists(requests, max_size=3))
    def query_batch(self, batch: list[models.QueryRequest]) -> None:
        one, two = self.both(lambda s: s.query_batch(batch))
        assert len(one) == len(two) == len(batch)
        for a, b, request in zip(one, two, batch, strict=True):
            cut = len(a) == request.limit or bool(request.offset)
            assert_same_hits(a, b, cut=cut)
        for store, answers in ((self.edge, one), (self.local, two)):
            for found, hits, request in zip(store.query_ids(batch), answers, batch, strict=True):
                pairs = zip(found.ids, found.scores, strict=True)
                alone = [models.ScoredPoint(id=str(i), version=0, score=s) for i, s in pairs]
                bare = [models.ScoredPoint(id=str(h.id), version=0, score=h.score) for h in hits]
                # Asked again, the last digits may be others, and with them the order of ties.
                cut = len(hits) == request.limit or bool(request.offset)
                assert_same_hits(alone, bare, cut=cut)

    @rule(query=st.lists(st.sampled_from([*WORDS, "bird"]), min_size=1, max_size=3))
    def query_text(self, query: list[str]) -> None:
        request = models.QueryRequest(
            query=models.TextQuery(text=" ".join(query)), using="captions[].text", limit=20
        )
        one, two = self.both(lambda s: s.query_batch([request]))
        assert {hit.id for hit in one[0]} == {hit.id for hit in two[0]}

    @rule(media=vectors(4), caption=vectors(3), filter=filters, k=st.sampled_from([None, 2, 60]))
    def fuse(self, media: Any, caption: Any, filter: Any, k: int | None) -> None:
        request = models.QueryRequest(
            prefetch=[
                models.Prefetch(query=media, using=MEDIA, limit=1),
                models.Prefetch(query=caption, using=CAPTION, limit=1, filter=filter),
            ],
            query=models.RrfQuery(rrf=models.Rrf(k=k))
            if k
            else models.FusionQuery(fusion=models.Fusion.RRF),
        )
        one, two = self.both(lambda s: s.query_batch([request]))
        assert len(one[0]) <= 2 and len(two[0]) <= 2
        if len(one[0]) == len(two[0]):  # which point of a tie is fetched may differ
            assert scores(one[0]) == pytest.approx(scores(two[0]), abs=1e-4)

    @rule()
    def reopen(self) -> None:
        """The other one takes over at its next call."""
        self.host.close()
        self.edge.count()
        self.host, self.edge = self.edge, shared(Path(self.folder.name))

    @rule()
    def build_graph(self) -> None:
        assert self.host._host is not None
        self.host._host.store.build_graph()

    @invariant()
    def same_size(self) -> None:
        self.same(lambda s: s.count())


TwoStores.TestCase.settings = settings(
    max_examples=40,
    stateful_step_count=25,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
)
TestTwoStores = TwoStores.TestCase
