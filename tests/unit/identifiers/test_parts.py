"""What identifiers are made of, and how queries are scored by it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cart_qdrant.identifiers.codec import IdentifierConfig, fit_codec
from cart_qdrant.identifiers.parts import MADE_OF, MEDIA_ALONE, Parts, captioned, uncaptioned
from cart_qdrant.identifiers.quantizer import Codec
from tests.unit.identifiers.made_codecs import BOTH, joint_codec

SOME = {
    "media": MEDIA_ALONE, "captions": Parts(caption=0.9, media=0.0), "both": BOTH,
}  # fmt: skip


def unit(seed: int, n: int, dim: int) -> Any:
    x = np.random.default_rng(seed).normal(size=(n, dim)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.mark.parametrize("made_of", MADE_OF)
def test_a_query_scores_an_item_by_the_weighted_cosines_of_its_parts(made_of: str) -> None:
    parts = SOME[made_of]
    assert parts.made_of == made_of
    x, m, q, c = unit(0, 7, 5), unit(1, 7, 3), unit(2, 4, 5), unit(3, 4, 3)
    z = parts.of_items(x, m)
    u = parts.of_queries(q, c, z.shape[1])
    assert u is not None
    wanted = parts.caption * c @ m.T + parts.media * q @ x.T
    np.testing.assert_allclose(u @ z.T, wanted, atol=1e-5)


@pytest.mark.parametrize("caption", [None, np.zeros((4, 3), np.float32)])
def test_a_query_that_is_no_text_asks_by_its_media_part(caption: Any) -> None:
    x, m, q = unit(0, 7, 5), unit(1, 7, 3), unit(2, 4, 5)
    u = BOTH.of_queries(q, caption, 8)
    assert u is not None
    np.testing.assert_allclose(u @ BOTH.of_items(x, m).T, BOTH.media * q @ x.T, atol=1e-5)
    assert SOME["captions"].of_queries(q, caption, 3) is None


def test_items_with_captions_have_a_space_of_their_own_where_one_was_fitted() -> None:
    assert uncaptioned(captioned("visual")) == uncaptioned("visual") == "visual"
    codec = joint_codec(unit(0, 30, 8), unit(1, 30, 6))
    spaces = np.asarray(["visual", "audio", "visual", "audio"])
    names = codec.names(spaces, np.asarray([True, True, False, False]))
    assert names.tolist() == [captioned("visual"), "audio", "visual", "audio"]
    assert codec.names(spaces[:0], np.zeros(0, bool)).tolist() == []
    media = fit_codec({"visual": unit(0, 30, 8)}, IdentifierConfig(method="rkmeans"))
    assert media.names(spaces[:1], np.asarray([True])).tolist() == ["visual"]
    assert codec.reads_captions and not media.reads_captions


def test_each_coarse_code_belongs_to_one_space() -> None:
    codec = joint_codec(unit(0, 30, 8), unit(1, 30, 6))
    for name, q in codec.quantizers.items():
        assert {codec.name_of(k) for k in range(q.offset, q.end)} == {name}
    assert codec.name_of(codec.coarse) is None


def test_queries_reach_the_spaces_whose_media_space_they_have_a_vector_in() -> None:
    codec = joint_codec(unit(0, 30, 8), unit(1, 30, 6))
    q, c = unit(2, 3, 8), unit(3, 3, 6)
    found = codec.queries({"visual": q}, c)
    assert {name: u.shape for name, u in found.items()} == {
        "visual": (3, 8), captioned("visual"): (3, 14),
    }  # fmt: skip
    np.testing.assert_array_equal(found["visual"], q)
    assert codec.queries({"audio": q}, c) == {}


def test_what_identifiers_are_made_of_is_stored_with_them() -> None:
    codec = joint_codec(unit(0, 30, 8), unit(1, 30, 6))
    again = Codec.from_arrays(codec.to_arrays(), codec.to_meta())
    assert {name: q.parts for name, q in again.quantizers.items()} == {
        "visual": MEDIA_ALONE, captioned("visual"): BOTH,
    }  # fmt: skip


def test_few_vectors_have_fewer_codes_than_are_asked_for() -> None:
    config = IdentifierConfig(method="rkmeans", least_codes=16)
    sizes = {
        n: fit_codec({"s": unit(0, n, 8)}, config).quantizers["s"].books_MVD.shape[1]
        for n in (4, 40, 400)
    }
    assert sizes[4] == 4 and sizes[40] >= 10 and sizes[400] == 16
