"""Cuts a stream of sampled video frames into shots, with bounded memory.

A cut is where the frames on each side resemble each other much more than they resemble those on
the other side. That holds for hard cuts and, across a short gap, for dissolves and fades; it does
not hold for a flash (both sides are alike) or for steady motion (each side changes as much).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from cart_qdrant.arrays.types import ByteArray, FloatArray
from cart_qdrant.config import SegmentConfig

LOOK_SIDE = 32  # pixels; side of the thumbnails by which frames are compared
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
_BINS = 4  # per colour channel
_NOISE = 30.0  # variance (levels squared) that is taken for noise when comparing structure
_BRIGHT = 99.0  # percentile of luma that must be dark in a black frame
# Samples between the two sides, and how many times the change across must exceed the change
# within. Steady motion changes (gap + 1) times as much across as within.
_GAPS = ((0, 2.5), (1, 3.0), (3, 7.0))
_HISTORY = max(gap for gap, _ in _GAPS) + 2  # looks kept
_SPARE = 4  # frames held for each frame kept, so that both halves of a shot have enough
_EPSILON = 1e-6  # seconds


class Look:
    """Features of a frame, by which frames are compared.

    Args:
        thumb: The frame as RGB (LOOK_SIDE, LOOK_SIDE, 3).
    """

    __slots__ = ("__dict__", "thumb")

    def __init__(self, thumb: ByteArray) -> None:
        self.thumb = thumb

    @cached_property
    def luma(self) -> FloatArray:
        """Brightness less its mean, (LOOK_SIDE * LOOK_SIDE,), in levels of 255."""
        return np.asarray(self._grey - self._grey.mean(), np.float32)

    @cached_property
    def variance(self) -> float:
        """Variance of the brightness, levels squared."""
        return float(np.mean(self.luma * self.luma))

    @cached_property
    def histogram(self) -> FloatArray:
        """Shares of the colours, (_BINS ** 3,); sums to 1."""
        bins = (self.thumb.reshape(-1, 3) // (256 // _BINS)).astype(np.int64)
        index = (bins[:, 0] * _BINS + bins[:, 1]) * _BINS + bins[:, 2]
        counts = np.bincount(index, minlength=_BINS**3)
        return np.asarray(counts / len(index), np.float32)

    @cached_property
    def bright(self) -> float:
        """Brightness of the brightest parts, levels of 255."""
        return float(np.percentile(self._grey, _BRIGHT))

    @cached_property
    def _grey(self) -> FloatArray:
        return (self.thumb.reshape(-1, 3) @ _LUMA).astype(np.float32)


def change(a: Look, b: Look) -> float:
    """Difference of two frames in colours or structure, from 0 (none) to 1."""
    colours = 0.5 * float(np.abs(a.histogram - b.histogram).sum())
    covariance = float(np.mean(a.luma * b.luma))
    alike = (2 * covariance + _NOISE) / (a.variance + b.variance + _NOISE)
    structure = min(1.0, max(0.0, 1.0 - alike))
    return 1.0 - (1.0 - colours) * (1.0 - structure)


@dataclass(frozen=True, slots=True)
class Sample:
    """A frame that is shown from `time` to `until` (seconds).

    Attributes:
        look: Features for comparison.
        render: Makes the frame, RGB (H, W, 3); called before the next sample is read, or never.
    """

    time: float
    until: float
    look: Look
    render: Callable[[], ByteArray]


@dataclass(frozen=True, slots=True, eq=False)
class Shot:
    """A stretch of a video, in seconds, and a few of its frames, each RGB (H, W, 3)."""

    start: float
    end: float
    frames: tuple[ByteArray, ...]


@dataclass(slots=True)
class Seen:
    """Counts of samples, which explain why a video has no shot."""

    samples: int = 0
    black: int = 0


def cut(
    samples: Iterable[Sample], config: SegmentConfig, seen: Seen | None = None
) -> Iterator[Shot]:
    """Cut samples, in time order, into shots.

    Shots are in time order, do not overlap and are at most `max_shot` long. Black stretches are
    left out. So are frozen stretches, except that a frozen frame that no other shot shows (a slide,
    a title, a whole still video) gets one shot. A shot is shorter than `min_shot` only where it has
    no neighbour to join.
    """
    seen = seen or Seen()
    cutter = _Cutter(config)
    held: Sample | None = None
    for sample in samples:
        seen.samples += 1
        seen.black += sample.look.bright < config.black_level
        if held is not None:
            yield from cutter.push(held, sample.look)
        held = sample
    if held is not None:
        yield from cutter.push(held, None)
    yield from cutter.finish()


@dataclass(slots=True, eq=False)
class _Stretch:
    """Consecutive samples that may become a shot; holds at most about `room` frames."""

    start: float
    end: float
    room: int
    count: int = 0
    stride: int = 1
    kept: list[tuple[int, float, ByteArray]] = field(default_factory=list)
    """Number, time and frame of every `stride`-th sample."""

    @property
    def length(self) -> float:
        return self.end - self.start

    def add(self, sample: Sample) -> None:
        if self.count % self.stride == 0:
            self.kept.append((self.count, sample.time, sample.render()))
            if len(self.kept) > self.room:
                self.stride *= 2
                self.kept = [item for item in self.kept if item[0] % self.stride == 0]
        self.count += 1
        self.end = sample.until

    def split(self, time: float) -> _Stretch:
        """Keep the part before `time`; returns the rest."""
        rest = _Stretch(time, self.end, self.room, self.count, self.stride)
        rest.kept = [item for item in self.kept if item[1] >= time]
        self.kept = [item for item in self.kept if item[1] < time]
        self.end = time
        return rest

    def join(self, other: _Stretch) -> None:
        self.kept += other.kept
        self.end = other.end

    def shots(self, config: SegmentConfig) -> Iterator[Shot]:
        """The shots of the stretch: equal windows of at most `max_shot`."""
        windows = max(1, math.ceil(self.length / config.max_shot - _EPSILON))
        step = self.length / windows
        for n in range(windows):
            start, end = self.start + n * step, self.start + (n + 1) * step
            inside = [item for item in self.kept if start <= item[1] < end]
            if not inside:
                middle = (start + end) / 2
                inside = [min(self.kept, key=lambda item: abs(item[1] - middle))]
            wanted = (
                start + (k + 0.5) * (end - start) / config.frames for k in range(config.frames)
            )
            # By time, since joined stretches count their frames from 0 again.
            chosen = {min(inside, key=lambda item: abs(item[1] - time))[1] for time in wanted}
            frames = tuple(item[2] for item in inside if item[1] in chosen)
            yield Shot(round(start, 3), round(end, 3), frames)


class _Cutter:
    """State of one pass over a video: at most two stretches and a few looks."""

    def __init__(self, config: SegmentConfig) -> None:
        self.config = config
        self.current: _Stretch | None = None
        self.pending: _Stretch | None = None  # closed; a short one may still join it
        self.looks: deque[Look] = deque(maxlen=_HISTORY)  # since the last cut
        self.anchor: Sample | None = None  # first frame of the run that stands still
        self.frozen = False

    def push(self, sample: Sample, following: Look | None) -> Iterator[Shot]:
        if sample.look.bright < self.config.black_level:
            yield from self._close()
            self.anchor, self.frozen = None, False
            return
        if self.anchor is None or not self._stands_still(self.anchor.look, sample.look):
            self.anchor, self.frozen = sample, False
        elif self.frozen:
            return
        if self._is_cut(sample.look, following):
            self.looks.clear()
            if self.current is not None and self.current.length >= self.config.min_shot - _EPSILON:
                yield from self._close()
        if self.current is None:
            room = _SPARE * self.config.frames
            self.current = _Stretch(sample.time, sample.time, room)
        self.looks.append(sample.look)
        self.current.add(sample)
        yield from self._bound(self.current, self.anchor, sample)

    def finish(self) -> Iterator[Shot]:
        yield from self._close()
        if self.pending is not None:
            yield from self.pending.shots(self.config)
            self.pending = None

    def _bound(self, current: _Stretch, anchor: Sample, sample: Sample) -> Iterator[Shot]:
        """Close a stretch that has stood still for too long, or is too long for one shot."""
        config = self.config
        moved = anchor.time - current.start
        still = current.end - anchor.time
        if moved >= config.min_shot and still >= config.min_still:
            current.split(anchor.until)  # the rest shows nothing new
            self.frozen = True
            yield from self._close()
        elif moved < config.min_shot and still >= config.min_still:
            if current.length >= config.max_shot:
                current.split(current.start + config.max_shot)
                self.frozen = True
                yield from self._close()
        elif current.length >= config.max_shot + config.min_shot:
            rest = current.split(current.start + config.max_shot)
            if not rest.kept:  # all of its frames fell between the strides
                rest.kept.append((rest.count - 1, sample.time, sample.render()))
            yield from self._close(forget=False)
            self.current = rest

    def _close(self, *, forget: bool = True) -> Iterator[Shot]:
        stretch, self.current = self.current, None
        if forget:
            self.looks.clear()
        if stretch is None:
            return
        before = self.pending
        touches = before is not None and abs(before.end - stretch.start) < _EPSILON
        if before is not None and touches and stretch.length < self.config.min_shot - _EPSILON:
            before.join(stretch)
            return
        self.pending = stretch
        if before is not None:
            yield from before.shots(self.config)

    def _stands_still(self, a: Look, b: Look) -> bool:
        difference = np.abs(a.thumb.astype(np.int16) - b.thumb.astype(np.int16))
        return int(difference.max()) <= self.config.still_level

    def _is_cut(self, look: Look, following: Look | None) -> bool:
        """Whether `look` begins a shot. The last frame does not: its shot would be too short."""
        if following is None:
            return False
        looks = list(self.looks)
        after = change(look, following)
        for gap, ratio in _GAPS:
            last = len(looks) - 1 - gap
            # A dissolve needs two settled frames before it; a hard cut may follow the first one.
            if last < (0 if gap == 0 else 1):
                break
            past = looks[max(0, last - 1) : last + 1]
            across = min(change(p, q) for p in past for q in (look, following))
            within = max(after, change(past[0], past[-1]))
            if across > self.config.shot_threshold and across > ratio * within:
                return True
        return False
