"""The prior of which modality a query is for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cart_qdrant.search.modality_prior import FLOOR, LEAST, ModalityPrior

SPACES = {"image": "visual", "video": "visual", "audio": "audio"}


def fitted(
    counts: dict[str, int], files: dict[str, int] | None = None
) -> tuple[ModalityPrior, dict[str, npt.NDArray[np.float32]]]:
    """Fitted to texts that lie about an axis of their modality; also one query of each kind."""
    rng = np.random.default_rng(0)
    axes = {m: np.eye(8, dtype=np.float32)[n] for n, m in enumerate(SPACES)}
    modality_P = [m for m, count in counts.items() for _ in range(count)]
    x = np.stack([axes[m] for m in modality_P]) + 0.1 * rng.normal(size=(len(modality_P), 8))
    texts = [f"text {n}" for n in range(len(modality_P))]
    found = ModalityPrior.fit(
        texts, modality_P, lambda rows: x[rows].astype(np.float32), SPACES, files or counts, 8
    )
    return found, {m: axis[None] for m, axis in axes.items()}


def test_a_query_is_for_what_its_words_are_said_of() -> None:
    found, queries = fitted({"image": 300, "video": 40, "audio": 40})
    assert len(found) == 3
    for modality, q in queries.items():
        assert int(found.log_priors(q)[0].argmax()) == found.group_of[modality]


def test_rare_media_are_believed_more_than_they_are_many() -> None:
    found, _ = fitted({"image": 400, "audio": 100}, {"image": 400, "audio": 4, "video": 0})
    nothing = np.exp(found.log_priors(np.zeros((1, 8), np.float32))[0])
    assert nothing[found.group_of["audio"]] > 4 / 404


def test_media_with_few_texts_go_with_the_others_of_their_space() -> None:
    found, _ = fitted({"image": 100, "video": LEAST - 1, "audio": 5})
    assert found.group_of["video"] == found.group_of["image"] != found.group_of["audio"]
    found, _ = fitted({"image": 100, "video": LEAST, "audio": 0})
    assert found.group_of["audio"] == found.group_of["image"] != found.group_of["video"]
    found, _ = fitted({"image": 100, "video": 0, "audio": 0})
    assert len(found) == 1 and set(found.group_of.values()) == {0}


def test_a_text_that_segments_share_counts_once() -> None:
    x = np.random.default_rng(0).normal(size=(200, 8)).astype(np.float32)
    asked: list[int] = []

    def vectors(rows: npt.NDArray[np.intp]) -> npt.NDArray[np.float32]:
        asked.extend(rows.tolist())
        return x[rows]

    texts = [f"photo {n}" for n in range(100)] + ["One film"] * 50 + ["one film "] * 50
    modalities = ["image"] * 100 + ["video"] * 100
    found = ModalityPrior.fit(texts, modalities, vectors, SPACES, {"image": 100, "video": 1}, 8)
    assert len(found) == 1 and asked == []


@given(st.lists(st.floats(-50, 50, width=32), min_size=8, max_size=8))
def test_priors_are_probabilities_and_nothing_is_ruled_out(q: list[float]) -> None:
    found, _ = fitted({"image": 30, "audio": 30})
    p = np.exp(found.log_priors(np.asarray([q], np.float32))[0])
    assert p.sum() == pytest.approx(1, abs=1e-5)
    assert p.min() >= FLOOR / 2 - 1e-6


def test_saved_and_loaded_it_is_the_same(tmp_path: Path) -> None:
    found, queries = fitted({"image": 30, "video": 30, "audio": 30})
    found.save(tmp_path / "v.safetensors")
    again = ModalityPrior.load(tmp_path / "v.safetensors")
    assert again.group_of == found.group_of
    for q in queries.values():
        assert np.array_equal(again.log_priors(q), found.log_priors(q))
