"""Ingest, train and search together on a small real index."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cart_qdrant.arrays.point_ids import keys_of
from cart_qdrant.errors import IndexMissingError, MismatchError, UsageError
from cart_qdrant.evaluation.evaluate import EvalQuery, evaluate, load_queries
from cart_qdrant.files import file_hash
from cart_qdrant.generator.beam_search import Beams
from cart_qdrant.identifiers.item_table import MODALITIES, ItemTable
from cart_qdrant.index.identifier_files import load_table, load_trie
from cart_qdrant.index.index import Index
from cart_qdrant.index.manifest import Artifact
from cart_qdrant.search.encoding import QueryEncoding
from cart_qdrant.search.filters import parse_filter
from cart_qdrant.search.item_features import ItemFeatureReader
from cart_qdrant.search.lanes import LANES
from cart_qdrant.search.retriever import Retriever
from tests.conftest import copy_of


@pytest.mark.parametrize("lane", LANES)
def test_every_lane_answers_before_training(small_index: Path, lane) -> None:
    with Retriever.open(small_index) as retriever:
        result = retriever.search("a dog on a surfboard", k=3, lane=lane)
    assert 0 < len(result.hits) <= 3
    assert [hit.rank for hit in result.hits] == list(range(1, len(result.hits) + 1))
    assert any("not trained" in remark for remark in result.remarks)


def test_a_caption_is_found_before_training(small_index: Path) -> None:
    with Retriever.open(small_index) as retriever:
        hit = retriever.search("a dog on a surfboard").hits[0]
    assert hit.path.endswith("picture-0.png")
    assert hit.caption == "a dog on a surfboard"


def test_the_lane_of_words_finds_what_holds_one(small_index: Path) -> None:
    with Retriever.open(small_index) as retriever:
        hits = retriever.search("surfboard", lane="bm25").hits
        assert retriever.search("zyzzyva", lane="bm25").hits == []
    assert hits
    assert all("surfboard" in str(hit.payload["captions"]) for hit in hits)


@pytest.mark.parametrize("lane", LANES)
def test_a_hit_has_the_similarity_that_its_lane_compared(trained: Path, lane) -> None:
    with Retriever.open(trained) as retriever:
        hits = retriever.search("a dog on a surfboard", lane=lane, explain=True).hits
    assert hits
    for hit in hits:
        why = hit.why or {}
        compared = [why["media_similarity"], why["caption_similarity"]]
        expected = next((cosine for cosine in compared if cosine is not None), None)
        assert (hit.similarity is None) == (expected is None) == (lane == "bm25")
        assert expected is None or hit.similarity == pytest.approx(expected, abs=1e-4)
        assert hit.to_json()["similarity"] == hit.metadata()["similarity"] == hit.similarity
        if lane == "caption":
            assert hit.similarity == hit.score


@pytest.mark.parametrize("lane", ["caption", "bm25"])
def test_lanes_of_captions_need_no_query_in_media_space(
    small_index: Path, monkeypatch: pytest.MonkeyPatch, lane
) -> None:
    def fail(_: QueryEncoding, queries: list[str], text_BW: object) -> dict[str, object]:
        raise AssertionError(queries)

    monkeypatch.setattr(QueryEncoding, "_untrained", fail)
    with Retriever.open(small_index) as retriever:
        result = retriever.search("a dog on a surfboard", lane=lane)
        assert result.hits[0].path.endswith("picture-0.png")
        assert len(result.remarks) == 1
        with pytest.raises(AssertionError, match="surfboard"):
            retriever.search("a dog on a surfboard", lane="dense")


@pytest.mark.parametrize("lane", LANES)
def test_every_lane_answers_after_training(trained: Path, lane) -> None:
    with Retriever.open(trained) as retriever:
        result = retriever.search("a dog on a surfboard", k=5, lane=lane)
        again = retriever.search_many(["something else", "a dog on a surfboard"], k=5, lane=lane)
    assert result.hits
    assert result.remarks == []
    scores = [hit.score for hit in result.hits]
    assert scores == sorted(scores, reverse=True)
    assert [h.id for h in again[1].hits] == [h.id for h in result.hits]


def change_table(root: Path, change: Callable[[ItemTable], ItemTable]) -> None:
    """Put another item table in force."""
    with Index.open(root) as index:
        info, table = index.manifest.identifiers, load_table(index)
        assert info is not None and table is not None
        path = root / "items-changed.safetensors"
        change(table).save(path)
        items = Artifact(path.name, file_hash(path))
        index.put(replace(index.manifest, identifiers=replace(info, items=items)))


def every_second(table: ItemTable) -> ItemTable:
    """As if half of the points had come since it was written."""
    return ItemTable(
        table.key_N[::2].copy(), table.leaf_N[::2].copy(), table.modality_N[::2].copy(),
        table.file_N[::2].copy(), table.caption_hub_N[::2].copy(),
    )  # fmt: skip


def test_what_the_table_lacks_is_read_from_payloads(trained: Path, tmp_path: Path) -> None:
    root = tmp_path / ".cartq"
    copy_of(trained, root)
    change_table(root, every_second)
    texts = ["a dog on a surfboard", "something else"]
    for lane in LANES:
        answers = []
        for where in (trained, root):
            with Retriever.open(where) as retriever:
                found = retriever.search_many(texts, k=8, lane=lane, explain=True)
            answers.append([[(h.id, h.confidence, h.why) for h in one.hits] for one in found])
        assert answers[0] == answers[1], lane


def test_a_point_that_got_another_identifier_is_known_by_its_payload(trained: Path) -> None:
    with Index.open(trained) as index:
        info, trie, table = index.manifest.identifiers, load_trie(index), load_table(index)
        assert info is not None and trie is not None and table is not None
        one, other = list(index.store.scroll())[:2]
        ids = [str(one.id), str(other.id)]
        key = keys_of(ids)
        row = table.rows(key)
        old = table.leaf_N.copy()
        old[row[0]] = table.leaf_N[row[1]]  # the first had that of the second
        leaf = table.leaf_N[row[:1]]
        named = Beams(trie.rows()[leaf], np.zeros(1, np.float32), leaf)
        spaces = sorted(set(index.manifest.embedder.spaces.values()))
        for known in (table, replace(table, leaf_N=old)):
            reader = ItemFeatureReader(index, trie, known, dict.fromkeys(MODALITIES, 0), spaces)
            features, (share,) = reader.read(ids, key, [(named, np.asarray([0, 1]))])
            assert share[0] == 0 and np.isnan(share[1])
            carts = [(r.payload or {})[info.field] for r in (one, other)]
            assert features.hub_C.tolist() == pytest.approx([c["hub"]["media"] for c in carts])


def test_training_flips_to_new_identifiers(small_index: Path, trained: Path) -> None:
    with Index.open(trained) as index:
        info, generator = index.manifest.identifiers, index.manifest.generator
        assert info is not None and generator is not None
        assert generator.identifiers == info.version
        # The old ones stay until the next run that writes, for retrievers that have them open.
        assert index.manifest.stale_fields == ["cart"] and info.field == "cart_2"
        payloads = [record.payload or {} for record in index.store.scroll()]
    assert all({"cart", "cart_2"} <= payload.keys() for payload in payloads)


def test_filters_mask_every_lane(trained: Path) -> None:
    wanted = parse_filter([], "audio")  # type: ignore[arg-type]
    with Retriever.open(trained) as retriever:
        for lane in LANES:
            hits = retriever.search("a bell", lane=lane, filter=wanted).hits
            assert {str(hit.modality) for hit in hits} <= {"audio"}


def test_the_generative_lane_keeps_every_item_that_a_beam_names(trained: Path) -> None:
    """The beams are wider than this index, so all items that text reaches are named."""
    with Retriever.open(trained) as retriever:
        found = retriever.search("a bell", k=100, lane="generative", group_by="none").hits
        dense = retriever.search("a bell", k=100, lane="dense", group_by="none").hits
    assert {hit.id for hit in found} == {hit.id for hit in dense}


def test_grouping_gives_a_file_once(trained: Path) -> None:
    with Retriever.open(trained) as retriever:
        grouped = retriever.search("a beach", k=50, lane="fused").hits
        single = retriever.search("a beach", k=50, lane="fused", group_by="none").hits
    paths = [hit.path for hit in grouped]
    assert len(paths) == len(set(paths))
    assert len(single) > len(grouped)
    assert any(hit.end > hit.start for hit in single)


def test_json_contract(trained: Path) -> None:
    with Retriever.open(trained) as retriever:
        data = json.loads(json.dumps(retriever.search("a dog").to_json()))
    assert set(data) == {"query", "lane", "index_version", "took_ms", "hits", "remarks"}
    assert set(data["took_ms"]) == {"encode", "decode", "resolve", "total"}
    assert set(data["hits"][0]) == {
        "rank", "id", "path", "modality", "start", "end", "score", "similarity", "confidence",
        "lane", "identifier", "caption", "moment", "payload",
    }  # fmt: skip


def test_hits_are_explained(trained: Path) -> None:
    with Retriever.open(trained) as retriever:
        plain = retriever.search("a dog on a surfboard", k=6)
        found = retriever.search("a dog on a surfboard", k=6, explain=True)
    assert all(hit.why is None for hit in plain.hits)
    assert [hit.id for hit in found.hits] == [hit.id for hit in plain.hits]
    best = found.to_json()["hits"][0]["why"]
    assert best["matched_caption"]["text"] == "a dog on a surfboard"
    assert best["rank_in"]["caption"] == 1
    for hit in found.hits:
        assert hit.why is not None and hit.identifier is not None
        path = hit.why["identifier_path"]
        assert "-".join(str(step["code"]) for step in path) == hit.identifier.rpartition("-")[0]
        assert all(step["log_prob"] <= 1e-5 for step in path)
        # Fewer and fewer items share the identifier, down to the hit and its copies.
        counts = [step["items"] for step in path]
        assert counts == sorted(counts, reverse=True) and counts[-1] >= 1
        assert path[0]["description"] and not any(step["description"] for step in path[1:])


def test_shares_of_a_branch_sum_to_one(trained: Path) -> None:
    """All items are hits: on the first level, each code's probability once."""
    with Retriever.open(trained) as retriever:
        hits = retriever.search("a bell", k=1000, lane="dense", group_by="none", explain=True).hits
        modality = {str(hit.modality) for hit in hits}
    assert modality == {"image", "video", "audio"}
    for space in ({"image", "video"}, {"audio"}):
        first = {
            hit.why["identifier_path"][0]["code"]: np.exp(hit.why["identifier_path"][0]["log_prob"])
            for hit in hits
            if hit.why is not None and str(hit.modality) in space
        }
        assert sum(first.values()) == pytest.approx(1, abs=1e-3)


def test_confidence_is_not_made_up(trained: Path) -> None:
    """Too few captions to hold any out: no hit claims a probability."""
    with Retriever.open(trained) as retriever:
        assert {hit.confidence for hit in retriever.search("a dog").hits} == {None}
        with pytest.raises(UsageError, match="not known"):
            retriever.search("a dog", min_confidence=0.5)
        with pytest.raises(UsageError, match="must be in"):
            retriever.search("a dog", min_confidence=1.5)


def test_bad_arguments_are_named(small_index: Path) -> None:
    with Retriever.open(small_index) as retriever:
        with pytest.raises(UsageError, match="empty"):
            retriever.search("  ")
        with pytest.raises(UsageError, match="k is 0"):
            retriever.search("a", k=0)
        with pytest.raises(UsageError, match="offset is -1"):
            retriever.search("a", offset=-1)
        with pytest.raises(UsageError, match=r"is 2\.0, but"):
            retriever.search("a", min_similarity=2.0)
        with pytest.raises(UsageError, match="compares words"):
            retriever.search("a", lane="bm25", min_similarity=0.5)
        with pytest.raises(UsageError, match="sideways"):
            retriever.search("a", lane="sideways")  # type: ignore[arg-type]


def test_an_empty_answer_says_why(small_index: Path) -> None:
    with Retriever.open(small_index) as retriever:
        for options, reason in [
            ({"offset": 500}, "--offset passes over 500"),
            ({"min_similarity": 1.0}, "all left out by --min-similarity 1"),
            ({"filter": parse_filter(["year=1066"])}, "no item meets the filter"),
            ({"lane": "bm25"}, "no caption holds a word of the query"),
        ]:
            found = retriever.search("zyzzyva", **options)
            assert found.hits == [] and reason in found.to_json()["remarks"][-1]


def test_missing_and_damaged_indexes_are_named(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(IndexMissingError, match="cartq ingest"):
        Retriever.open(tmp_path / "none")
    broken = tmp_path / ".cartq"
    copy_of(trained, broken)
    model = next(broken.glob("generator-*")) / "calibration.json"
    model.write_text(model.read_text() + " ")
    with pytest.raises(MismatchError, match="hash"):
        Retriever.open(broken)


def test_evaluate_counts_files(small_index: Path, tmp_path: Path) -> None:
    path = tmp_path / "queries.jsonl"
    path.write_text('{"query": "a dog on a surfboard", "relevant": ["picture-0.png"]}\n')
    queries = load_queries(path)
    queries.append(EvalQuery("a dog on a surfboard", ("nowhere.png",)))
    with Retriever.open(small_index) as retriever:
        (score,) = evaluate(retriever, queries, lanes=["fused"], ks=[1])
    assert score.to_json()["recall"] == {"1": 0.5}
    assert score.mrr_10 == 0.5


def test_a_broken_query_file_names_its_line(tmp_path: Path) -> None:
    path = tmp_path / "queries.jsonl"
    path.write_text('{"query": "a", "relevant": ["b"]}\n{"query": 1}\n')
    with pytest.raises(UsageError, match="line 2"):
        load_queries(path)
