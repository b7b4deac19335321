"""Options of a training."""

from __future__ import annotations

import pytest

from cart_qdrant.errors import UsageError
from cart_qdrant.training.options import (
    PROFILES,
    GeneratorFitConfig,
    TowerConfig,
    TrainOptions,
)


def test_settings_are_those_of_the_profile_unless_they_are_given() -> None:
    tower, generator = TowerConfig(epochs=7), GeneratorFitConfig(epochs=7)
    assert TrainOptions(profile="quick").settings == PROFILES["quick"]
    assert TrainOptions(tower=tower).settings == (tower, PROFILES["default"][1])
    assert TrainOptions(generator=generator).settings == (PROFILES["default"][0], generator)


def test_an_unknown_profile_is_named() -> None:
    with pytest.raises(UsageError, match="--profile is 'slow'"):
        TrainOptions(profile="slow")
