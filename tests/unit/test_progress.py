"""The time that is left: of a phase, and of a whole run whose forecast was wrong."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest

from cart_qdrant.progress import ExpectedPhase, Silent, TimeLeft, expect


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


Phase = tuple[str, int | None, float, float]
"""Name, units, seconds of a unit (of all where there are none), and seconds that were forecast."""

TRAINING: list[Phase] = [
    # Measured: `cartq train --profile quick`, 60 photos, one core, float32; seconds of processor
    # time. The forecasts are wrong by a fifth, each in its own way.
    ("reading captions", None, 6.4, 7.0),
    ("query tower", 60, 4.0, 200.0),
    ("encoding captions as queries", 300, 0.0042, 1.5),
    ("identifiers", None, 0.15, 0.2),
    ("generator", 30, 0.78, 26.0),
    ("calibration", None, 7.3, 6.0),
]


def replay(phases: Sequence[Phase], clock: Clock, left: TimeLeft) -> Iterator[float]:
    """Runs a training on a simulated clock; yields after each unit, with the seconds so far."""
    left.expect([ExpectedPhase(name, forecast) for name, _, _, forecast in phases])
    begin = clock.now
    for name, total, seconds, _ in phases:
        left.phase(name, total)
        for _ in range(total or 1):
            clock.now += seconds
            if total is not None:
                left.advance(1)
            yield clock.now - begin


@pytest.mark.parametrize("slower", [0.5, 1.0, 4.0])
def test_the_time_left_is_true_within_a_third(slower: float) -> None:
    """From a twentieth to nine tenths of the run, on machines of other speeds than forecast."""
    clock = Clock()
    left = TimeLeft(clock)
    phases = [(name, n, slower * seconds, forecast) for name, n, seconds, forecast in TRAINING]
    whole = sum(seconds * (n or 1) for _, n, seconds, _ in phases)
    checked = 0
    for passed in replay(phases, clock, left):
        if not 0.05 * whole < passed < 0.9 * whole:
            continue
        found = left.of_all()
        assert found is not None
        assert found == pytest.approx(whole - passed, rel=1 / 3)
        checked += 1
    assert checked > 50


def test_the_rate_of_one_phase_alone_is_wrong_by_more() -> None:
    """What was shown before: the tower's bar knew nothing of the generator."""
    clock = Clock()
    left = TimeLeft(clock)
    whole = sum(seconds * (n or 1) for _, n, seconds, _ in TRAINING)
    for passed in replay(TRAINING, clock, left):
        if 200 < passed < 230:
            alone, both = left.of_phase(), left.of_all()
            assert alone is not None and both is not None
            assert alone < (whole - passed) * 2 / 3 < both


def test_a_phase_that_stops_early_leaves_the_others() -> None:
    clock = Clock()
    left = TimeLeft(clock)
    left.expect([ExpectedPhase("tower", 100), ExpectedPhase("generator", 50)])
    left.phase("tower", 100)
    for _ in range(30):
        clock.now += 2.0  # twice as slow as forecast
        left.advance(1)
    assert left.of_all() == pytest.approx(140 + 100, rel=0.15)
    left.phase("generator", 50)
    assert left.of_all() == pytest.approx(100, rel=0.15)


def test_units_of_an_earlier_run_say_nothing_of_the_speed() -> None:
    clock = Clock()
    left = TimeLeft(clock)
    left.phase("tower", 100)
    left.advance(80)  # a run was resumed
    assert left.of_phase() is None
    for _ in range(5):
        clock.now += 2.0
        left.advance(1)
    assert left.of_phase() == pytest.approx(15 * 2.0)


def test_without_a_forecast_nothing_is_said_of_the_whole() -> None:
    clock = Clock()
    left = TimeLeft(clock)
    left.phase("hash", None)
    assert (left.of_phase(), left.of_all()) == (None, None)
    left.expect([ExpectedPhase("tower", 10)])
    left.phase("something else", 4)
    clock.now += 1
    left.advance(1)
    assert (left.of_phase(), left.of_all()) == (3.0, None)
    left.phase("tower", 10)
    assert left.of_all() is not None


def test_a_reporter_may_know_nothing_of_forecasts() -> None:
    heard: list[Sequence[ExpectedPhase]] = []

    class Listening(Silent):
        def expect(self, phases: Sequence[ExpectedPhase]) -> None:
            heard.append(phases)

    phases = [ExpectedPhase("tower", 10)]
    expect(Silent(), phases)
    expect(Listening(), phases)
    assert heard == [phases]
