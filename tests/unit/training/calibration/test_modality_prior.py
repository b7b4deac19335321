"""The modality prior, fitted to captions."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cart_qdrant.search.modality_prior import ModalityPrior
from cart_qdrant.training.calibration.modality_prior import LEAST, fit_modality_prior

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
    found = fit_modality_prior(
        texts, modality_P, lambda rows: x[rows].astype(np.float32), SPACES, files or counts, 8
    )
    return found, {m: axis[None] for m, axis in axes.items()}


def test_a_query_is_for_what_its_words_are_said_of() -> None:
    found, queries = fitted({"image": 300, "video": 40, "audio": 40})
    assert len(found) == 3
    for modality, q in queries.items():
        assert int(found.log_priors(q)[0].argmax()) == found.group_of[modality]


def test_rare_media_are_more_likely_than_their_share_of_the_files() -> None:
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
    found = fit_modality_prior(texts, modalities, vectors, SPACES, {"image": 100, "video": 1}, 8)
    assert len(found) == 1 and asked == []
