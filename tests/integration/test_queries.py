"""Queries by picture, sound, item and mixes, on a real `lite` index."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cart_qdrant.errors import MediaError, UsageError
from cart_qdrant.records import Modality
from cart_qdrant.search.lanes import LANES, MIXED_LANES
from cart_qdrant.search.query import Mixer, Part, Query
from cart_qdrant.search.retriever import Retriever
from cart_qdrant_cli.search import _query
from tests import media_factory as media


def asked(*parts: Part) -> Query:
    return Query(parts)


@pytest.fixture
def worse(small_media: Path, tmp_path: Path) -> Path:
    """A worse copy of picture-3, as another program might have written it."""
    path = tmp_path / "worse.jpg"
    Image.open(small_media / "picture-3.png").resize((128, 96)).save(path, quality=60)
    return path


@pytest.mark.parametrize("lane", MIXED_LANES)
def test_a_worse_copy_finds_its_picture(trained: Path, worse: Path, lane) -> None:
    with Retriever.open(trained) as retriever:
        result = retriever.search(asked(Part("image", str(worse))), lane=lane)
    assert result.hits[0].path.endswith("picture-3.png")
    assert result.lane == ("generative" if lane == "generative" else "dense")
    # Sounds are in another space of this embedder: no picture reaches them.
    assert {hit.modality for hit in result.hits} <= {Modality.IMAGE, Modality.VIDEO}
    assert [hit.score for hit in result.hits] == sorted(
        (hit.score for hit in result.hits), reverse=True
    )


def test_a_picture_is_asked_with_before_training_too(small_index: Path, worse: Path) -> None:
    with Retriever.open(small_index) as retriever:
        hits = retriever.search(asked(Part("image", str(worse)))).hits
    assert hits[0].path.endswith("picture-3.png")


def test_a_sound_finds_its_like_among_sounds(trained: Path, tmp_path: Path) -> None:
    path = media.write_audio(tmp_path / "other.wav", 0.5 * media.tone(2.0, hertz=880))
    with Retriever.open(trained) as retriever:
        hits = retriever.search(asked(Part("audio", str(path)))).hits
    assert hits[0].path.endswith("bell.wav")
    assert {hit.modality for hit in hits} == {Modality.AUDIO}


def test_an_item_finds_others_but_not_itself(trained: Path) -> None:
    with Retriever.open(trained) as retriever:
        whole = retriever.search("anything", k=50, lane="dense", group_by="none").hits
        clips = [hit for hit in whole if hit.modality is Modality.VIDEO]
        assert len(clips) >= 2  # one shot a scene
        one = clips[0]
        by_id = retriever.search(asked(Part("like", one.id)), k=50, group_by="none")
        moment = (one.start + one.end) / 2
        by_path = retriever.search(
            asked(Part("like", f"{one.path}@{moment}")), k=50, group_by="none"
        )
        files = retriever.search(asked(Part("like", one.id)), k=50)
    ids = [hit.id for hit in by_id.hits]
    assert ids == [hit.id for hit in by_path.hits]
    assert one.id not in ids and clips[1].id in ids
    assert one.path not in [hit.path for hit in files.hits]


def test_a_mix_is_the_sum_of_its_parts(trained: Path, worse: Path) -> None:
    text, picture = Part("text", "a dog", 0.7), Part("image", str(worse), 0.3)
    with Retriever.open(trained) as retriever:
        mixer = Mixer(
            retriever._index, retriever._follower.current().searcher._encoding.text_vectors
        )
        a, b = (mixer.mix(asked(Part(p.kind, p.value))).media["visual"] for p in (text, picture))
        both = mixer.mix(asked(text, picture)).media
        less = mixer.mix(asked(text, Part("image", str(worse), -0.3))).media["visual"]
        result = retriever.search(asked(text, picture), k=3)
        away = retriever.search(asked(text, Part("image", str(worse), -5.0)), k=50)
    assert set(both) == {"visual"}
    for found, sign in ((both["visual"], 1), (less, -1)):
        wanted = 0.7 * a + sign * 0.3 * b
        np.testing.assert_allclose(found, wanted / np.linalg.norm(wanted), atol=1e-5)
    assert result.query == f"0.7 a dog + 0.3 [image {worse}]"
    assert len(result.hits) == 3
    assert not away.hits[0].path.endswith("picture-3.png")
    assert away.hits[-1].path.endswith("picture-3.png")


def test_mixes_and_texts_are_answered_in_their_order(trained: Path, worse: Path) -> None:
    queries = ["a dog", asked(Part("image", str(worse))), asked(Part("text", "a beach")), "a dog"]
    with Retriever.open(trained) as retriever:
        together = retriever.search_many(queries, k=3)
        alone = [retriever.search(query, k=3) for query in queries]
    assert [r.query for r in together] == ["a dog", str(queries[1]), "a beach", "a dog"]
    assert [[h.id for h in r.hits] for r in together] == [[h.id for h in r.hits] for r in alone]


def test_why_is_told_of_a_mix_too(trained: Path, worse: Path) -> None:
    with Retriever.open(trained) as retriever:
        (hit,) = retriever.search(asked(Part("image", str(worse))), k=1, explain=True).hits
    assert hit.why is not None
    assert hit.why["media_similarity"] == pytest.approx(hit.score, abs=1e-3)
    assert hit.why["matched_caption"] is None
    assert len(hit.why["identifier_path"]) == len(hit.identifier.split("-")) - 1
    json.dumps(hit.why, allow_nan=False)


def test_bad_parts_are_told_in_one_line(
    trained: Path, worse: Path, small_media: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty.jpg").write_bytes(b"")
    picture = Part("image", str(worse))
    with Retriever.open(trained) as retriever:

        def refused(*parts: Part, error: type[Exception] = UsageError, **options) -> str:
            with pytest.raises(error) as caught:
                retriever.search(Query(parts), **options)
            return str(caught.value)

        assert "no file" in refused(Part("image", "nowhere.jpg"))
        assert "0 bytes" in refused(Part("image", str(tmp_path / "empty.jpg")), error=MediaError)
        bell = str(small_media / "bell.wav")
        assert "there is no image or video" in refused(Part("image", bell), error=MediaError)
        assert "No item of the index" in refused(Part("like", "nowhere.jpg@3"))
        sound = Part("audio", bell)
        assert "image" in refused(picture, sound) and "reaches audio" in refused(picture, sound)
        assert "cancel" in refused(picture, Part("image", str(worse), -1))
        for lane in set(LANES) - set(MIXED_LANES):
            assert "texts alone" in refused(picture, lane=lane)
        assert "--min-confidence" in refused(picture, min_confidence=0.5)
    for bad in (lambda: Part("text", " "), lambda: Part("text", "a", 0.0), lambda: Query(())):
        with pytest.raises(UsageError):
            bad()
    with pytest.raises(UsageError, match="nothing that is wanted"):
        asked(Part("text", "snow", -1))


def test_the_command_line_makes_a_query() -> None:
    query = _query("a", ["b\x1f0.5"], ["c.jpg"], None, ["d@3\x1f2"], ["e"])
    assert query.parts == (
        Part("text", "a"), Part("text", "b", 0.5), Part("image", "c.jpg"), Part("like", "d@3", 2),
        Part("text", "e", -1),
    )  # fmt: skip
    with pytest.raises(UsageError, match="nothing that is wanted"):
        _query(None, None, None, None, None, ["e"])
