"""Damages media files at random, and ingests them: what crashes, hangs or takes too much memory?

    python -m benchmarks.faults media --files 1000

Real files of each kind are made from `../shared/data`; each damaged one is decoded in a process
that is watched, and then all are ingested together by `cartq ingest`.
"""

from __future__ import annotations

import json
import os
import random
import resource
import selectors
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cart_qdrant.config import SegmentConfig
from cart_qdrant.errors import CartError
from cart_qdrant.media.segments import decode, probe
from cart_qdrant.media.thumbnails import thumbnail
from cart_qdrant.records import Modality

WAYS = ("flips", "header flips", "cut", "head", "middle", "zeros", "lengths", "twice")
"""How a file is damaged."""
LENGTHS = (b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", bytes(4))
"""Numbers that are put over those of a header."""
HANG = 10.0
"""Seconds of a file that count as hanging."""
MOST_MEMORY = 1500
"""MB that the process may take."""
FORMATS = tuple("png gif webp tif bmp jp2 wav flac mp3 m4a mkv mov mts".split())  # noqa: SIM905
"""Formats that are made from the files of `../shared/data` (jpg, ogg, mp4)."""


@dataclass(slots=True)
class MediaFaults:
    """What came of the damaged files."""

    files: int = 0
    decoded: int = 0
    refused: int = 0
    crashed: list[str] = field(default_factory=list)
    hung: list[str] = field(default_factory=list)
    slowest: float = 0.0
    """Seconds."""
    memory: int = 0
    """MB of the process that decodes, at most."""
    ingest_code: int | None = None
    ingest_memory: int = 0
    stored: int = 0
    failed: int = 0
    unnamed: int = 0
    """Damaged files that the ingestion neither stored nor named."""
    kinds: dict[str, int] = field(default_factory=dict)
    """How often each way of damaging was used."""


def originals(data: Path, folder: Path) -> list[Path]:
    """Small files of each kind."""
    import av
    from PIL import Image

    photos = sorted((data / "photos").rglob("*.jpg"), key=lambda p: p.stat().st_size)[:40:4]
    films = sorted((data / "videos").rglob("*.mp4"), key=lambda p: p.stat().st_size)[:6]
    sounds = sorted((data / "sounds").rglob("*.ogg"), key=lambda p: p.stat().st_size)[:20:4]
    made = [*photos, *films, *sounds]
    for suffix in FORMATS:
        target = folder / f"made.{suffix}"
        if suffix in ("png", "gif", "webp", "tif", "bmp", "jp2"):
            with Image.open(photos[0]) as image:
                image.convert("RGB").save(target)
        elif suffix in ("mkv", "mov", "mts"):
            with av.open(str(films[0])) as source, av.open(str(target), "w") as out:
                stream = source.streams.video[0]
                copy = out.add_stream_from_template(stream)
                for packet in source.demux(stream):
                    if packet.dts is not None:
                        packet.stream = copy
                        out.mux(packet)
        else:
            codec = {"wav": "pcm_s16le", "flac": "flac", "mp3": "libmp3lame", "m4a": "aac"}[suffix]
            form = "mp4" if suffix == "m4a" else None
            with av.open(str(sounds[0])) as source, av.open(str(target), "w", format=form) as out:
                track: Any = out.add_stream(codec, rate=44_100, layout="mono")
                planar = "fltp" if codec in ("aac", "libmp3lame") else "s16"
                resampler = av.AudioResampler(format=planar, layout="mono", rate=44_100)
                for frame in source.decode(audio=0):
                    for part in resampler.resample(frame):
                        out.mux(track.encode(part))
                out.mux(track.encode(None))
        made.append(target)
    return made


def damaged(rng: random.Random, data: bytes, other: bytes) -> tuple[str, bytes]:
    """One damaged form of a file, and the way it was damaged.

    Args:
        other: Another file, parts of which are spliced in.
    """
    way = rng.choice(WAYS)
    out = bytearray(data)
    at = rng.randrange(max(1, len(out)))
    if way == "flips":
        for _ in range(rng.choice([1, 8, 64, 512])):
            out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    elif way == "header flips":
        for _ in range(rng.choice([1, 4, 16])):
            out[rng.randrange(min(512, len(out)))] ^= 1 << rng.randrange(8)
    elif way == "cut":
        del out[at:]
    elif way == "head":
        size = rng.choice([4, 12, 64, 512, 4096])
        out[:size] = other[:size]
    elif way == "middle":
        size = rng.choice([64, 4096, 65536])
        out[at : at + size] = other[at : at + size] or other[:size]
    elif way == "zeros":
        size = rng.choice([16, 1024, 65536])
        out[at : at + size] = bytes(min(size, len(out) - at))
    elif way == "lengths":
        for _ in range(rng.choice([1, 4])):
            place = rng.randrange(min(2048, len(out)))
            out[place : place + 4] = rng.choice(LENGTHS)
    else:
        out = out[:at] + out
    return way, bytes(out)


def work(paths: list[str]) -> None:
    """Decode files and say how each went, one JSON line each: the process that is watched."""
    for path in map(Path, paths):
        print(json.dumps({"begin": path.name}), flush=True)
        start = time.perf_counter()
        outcome = "decoded"
        try:
            probe(path)
            for _ in decode(path, path.name, SegmentConfig()):
                pass
        except CartError as error:
            outcome = f"refused: {error.what}"
        for modality in Modality:
            try:
                thumbnail(path, modality, 0.5, 1.5)
            except CartError:
                continue
        seconds = time.perf_counter() - start
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        told = {"path": path.name, "outcome": outcome, "seconds": seconds, "memory": memory}
        print(json.dumps(told), flush=True)


def _watched(paths: list[Path], found: MediaFaults) -> None:
    left = list(paths)
    while left:
        command = [sys.executable, "-m", "benchmarks.faults", "media-worker", *map(str, left)]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as process:
            for told in _lines(process):
                if "begin" in told:
                    continue
                left.pop(0)
                found.memory = max(found.memory, told["memory"])
                found.slowest = max(found.slowest, told["seconds"])
                if told["outcome"] == "decoded":
                    found.decoded += 1
                else:
                    found.refused += 1
                if told["seconds"] > HANG:
                    found.hung.append(told["path"])
            if process.poll() is None and left:  # no line came in time
                process.kill()
                found.hung.append(left.pop(0).name)
            elif process.wait() != 0 and left:
                found.crashed.append(f"{left.pop(0).name}: exit {process.returncode}")


def _lines(process: subprocess.Popen[bytes]) -> Iterator[dict[str, Any]]:
    """Lines of a process until it ends or says nothing for too long."""
    assert process.stdout is not None
    patience = 60.0  # to start
    rest = b""
    with selectors.DefaultSelector() as ready:
        ready.register(process.stdout, selectors.EVENT_READ)
        while ready.select(patience):
            data = os.read(process.stdout.fileno(), 1 << 16)
            if not data:
                process.wait()
                return
            *whole, rest = (rest + data).split(b"\n")
            for line in whole:
                yield json.loads(line)
            patience = 3 * HANG  # other processes of the machine work, too


def media_faults(data: Path, folder: Path, *, files: int, seed: int, embedder: str) -> MediaFaults:
    """Damage, decode and ingest `files` files."""
    rng = random.Random(seed)
    (folder / "made").mkdir(parents=True)
    (folder / "media").mkdir()
    sources = [(path.suffix, path.read_bytes()) for path in originals(data, folder / "made")]
    found = MediaFaults(files=files)
    ways: Counter[str] = Counter()
    paths: list[Path] = []
    for n in range(files):
        suffix, content = sources[n % len(sources)]
        way, bad = damaged(rng, content, rng.choice(sources)[1])
        path = folder / "media" / f"{n:04}-{way.replace(' ', '-')}{suffix}"
        path.write_bytes(bad)
        paths.append(path)
        ways[way] += 1
    found.kinds = dict(ways)
    _watched(paths, found)
    _ingest(folder, paths, found, embedder)
    return found


def _ingest(folder: Path, paths: list[Path], found: MediaFaults, embedder: str) -> None:
    old = time.time() - 3600
    for path in paths:  # a file that changed a second ago waits for the next run
        os.utime(path, (old, old))
    report = folder / "report.json"
    command = [
        sys.executable, "-m", "cart_qdrant_cli.main", "ingest", str(folder / "media"),
        "--index", str(folder / ".cartq"), "--embedder", embedder, "--json",
    ]  # fmt: skip
    with report.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
    found.ingest_code = os.waitstatus_to_exitcode(status)
    found.ingest_memory = usage.ru_maxrss // 1024
    told = json.loads(report.read_bytes() or b"{}")
    named = {Path(one["path"]).name for one in told.get("failed", [])}
    from cart_qdrant.index.index import Index

    with Index.open(folder / ".cartq") as index:
        stored = {Path((row.payload or {})["path"]).name for row in index.store.scroll()}
    found.stored, found.failed = len(stored), len(named)
    found.unnamed = len({path.name for path in paths} - stored - named)


def show(found: MediaFaults) -> None:
    """Print the table and a JSON row."""
    print(
        "| files | decoded | refused | crashes | hangs | slowest | memory | ingest: exit, memory |"
    )
    print("|---|---|---|---|---|---|---|---|")
    print(
        f"| {found.files} | {found.decoded} | {found.refused} | {len(found.crashed)} | "
        f"{len(found.hung)} | {found.slowest:.1f} s | {found.memory} MB | "
        f"{found.ingest_code}, {found.ingest_memory} MB: {found.stored} stored, "
        f"{found.failed} named, {found.unnamed} neither |"
    )
    print(json.dumps(asdict(found)))
