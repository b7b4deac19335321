"""Compare hand-written parts of `media` and `embedders` with well-kept libraries.

    python -m benchmarks.media_libraries exif sniff shots downloads

Needs puremagic, pooch, huggingface_hub, and scenedetect with opencv-python-headless;
`sniff` and `shots` read ../shared/data where it is there. Prints one table row a candidate.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import re
import struct
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from cart_qdrant.config import SegmentConfig
from tests import media_factory as make

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
DATA = DATA if DATA.is_dir() else Path("/work/shared/data")


def row(part: str, candidate: str, *values: object) -> None:
    print("|", " | ".join(map(str, (part, candidate, *values))), "|", flush=True)


def microseconds(call: Callable[[], object], repeats: int) -> float:
    best = float("inf")
    for _ in range(3):
        begin = time.perf_counter()
        for _ in range(repeats):
            call()
        best = min(best, (time.perf_counter() - begin) / repeats)
    return best * 1e6


# EXIF


def exif() -> None:
    from cart_qdrant.media.image import load_image

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = {}
        for suffix in ("jpg", "png", "webp"):
            for orientation in range(1, 9):
                tags = Image.Exif()
                tags[0x0112] = orientation
                options = {"quality": 95} if suffix == "jpg" else {"lossless": True}
                path = make.write_image(folder / f"{orientation}.{suffix}", exif=tags, **options)
                paths[path] = None
        damaged = [make.write_corrupt_exif(folder / "corrupt.jpg")]
        for n, block in enumerate(
            (b"Exif\0\0", b"Exif\0\0II*\0\x08\0\0\0",
             b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"x" * 40,
             b"Exif\0\0II*\0\x08\0\0\0\x01\0" + struct.pack("<HHIHH", 0x0112, 3, 1, 99, 0))
        ):  # fmt: skip
            damaged.append(make.write_image(folder / f"damaged-{n}.jpg", exif=block))

        def pillow(path: Path) -> tuple[np.ndarray[Any, Any], bool]:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                with Image.open(path) as image:
                    upright = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
            return upright, bool(caught)

        def ours(path: Path) -> tuple[np.ndarray[Any, Any], bool]:
            notes: list[str] = []
            return load_image(path, SegmentConfig(), notes.append), bool(notes)

        for candidate, read in (("ours", ours), ("Pillow's exif_transpose", pillow)):
            upright = sum(np.array_equal(read(path)[0], pillow(path)[0]) for path in paths)
            told, failed = 0, 0
            for path in damaged:
                try:
                    told += read(path)[1]
                except Exception:  # noqa: BLE001 - what damaged blocks do is what is measured
                    failed += 1
            row(
                "EXIF", candidate, f"{upright} of {len(paths)} upright",
                f"{told} of {len(damaged)} damaged blocks noticed, {failed} raise",
            )  # fmt: skip


# Sniffing


def puremagic_kind(path: Path) -> str | None:
    import puremagic

    try:
        mime = puremagic.from_file(str(path), mime=True)
    except (puremagic.PureError, ValueError, OSError):
        return None
    group = mime.split("/")[0]
    if group in {"video", "audio"} or mime in {"application/ogg", "application/vnd.rn-realmedia"}:
        return "container"
    return "image" if group == "image" else None


def ours_kind(path: Path) -> str | None:
    from cart_qdrant.errors import MediaError
    from cart_qdrant.media.sniff import Kind, sniff

    try:
        kind = sniff(path)
    except MediaError:
        return None
    return {None: None, Kind.CONTAINER: "container"}.get(kind, "image")


def sniffing() -> None:
    wanted: list[tuple[Path, str | None]] = []
    for folder, kind in (("photos", "image"), ("videos", "container"), ("sounds", "container")):
        found = sorted(p for p in (DATA / folder).rglob("*") if p.is_file())
        media = [p for p in found if p.suffix.lower() not in {".jsonl", ".json", ".md", ".txt"}]
        wanted += [(path, kind) for path in media[:500]]
        wanted += [(path, None) for path in found if path not in set(media)][:20]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made: list[tuple[Path, str | None]] = []
        picture = Image.fromarray(make.scene(1))
        for suffix in ("bmp", "gif", "jp2", "png", "ppm", "tiff", "webp", "tga", "avif"):
            picture.save(folder / f"a.{suffix}")
            if suffix != "tga":
                made.append((folder / f"a.{suffix}", "image"))
        for suffix, codec in (
            ("wav", "pcm_s16le"), ("flac", "flac"), ("mp3", "mp3"), ("ogg", "libopus"),
            ("m4a", "aac"), ("aac", "aac"), ("mka", "flac"), ("aiff", "pcm_s16be"),
            ("au", "pcm_s16be"), ("ac3", "ac3"), ("wma", "wmav2"), ("caf", "pcm_s16le"),
        ):  # fmt: skip
            path = folder / f"a.{suffix}"
            try:
                made.append((make.write_audio(path, make.tone(1.0), codec=codec), "container"))
            except Exception as error:  # noqa: BLE001 - a codec that this FFmpeg lacks
                print(f"(no {suffix}: {error})")
        for suffix in ("mp4", "mkv", "mov", "avi", "ts", "mpg"):
            options = {"codec": "mpeg2video"} if suffix == "mpg" else {}
            try:
                made.append(
                    (make.write_video(folder / f"v.{suffix}", make.moving(1, 12), **options),
                     "container")
                )  # fmt: skip
            except Exception as error:  # noqa: BLE001
                print(f"(no {suffix}: {error})")
        texts = {
            "story.txt": b"BM is how this text begins, and P6 it goes on.\n" * 40,
            "page.html": b"<!doctype html><title>a</title>", "data.json": b'{"a": [1, 2]}',
            "table.csv": b"file_name,caption\na.jpg,a dog\n", "code.py": b"import os\n",
            "utf16.txt": "Text in UTF-16".encode("utf-16"), "book.pdf": b"%PDF-1.7\n%a\n",
            "archive.zip": b"PK\x03\x04\x14\x00\x00\x00\x08\x00", "drawing.svg": b"<svg></svg>",
            "notes.mp4": b"This is not a video.\n" * 20, "zeros.bin": bytes(4096),
            "program": b"\x7fELF\x02\x01\x01" + bytes(64), "empty.jpg": b"",
        }  # fmt: skip
        for file, content in texts.items():
            (folder / file).write_bytes(content)
            made.append((folder / file, None))
        # The same media without the extension that helps a guess.
        bare = []
        for path, kind in [item for item in made if item[1]] + wanted[:1]:
            copy = folder / f"bare-{path.name.replace('.', '-')}"
            copy.write_bytes(path.read_bytes())
            bare.append((copy, kind))
        for candidate, read in (("ours", ours_kind), ("puremagic", puremagic_kind)):
            columns = []
            for label, group in (("shared", wanted), ("made", made), ("no extension", bare)):
                wrong = [path.name for path, kind in group if read(path) != kind]
                shown = f" ({', '.join(wrong[:9])})" if wrong else ""
                columns.append(f"{label}: {len(group) - len(wrong)} of {len(group)}{shown}")
            paths = [path for path, _ in wanted[:200]]
            cost = microseconds(lambda: [read(path) for path in paths], 1)  # noqa: B023
            row("sniffing", candidate, *columns, f"{cost / max(1, len(paths)):.0f} us a file")


# Shots


def sampled(path: Path) -> list[Any]:
    """Samples four times a second, with a picture of at most 128 pixels."""
    from cart_qdrant.media import containers, video

    config = SegmentConfig(max_side=128)
    with containers.opened(path) as container:
        stream = containers.video_stream(container)
        assert stream is not None
        pictures = video._frames(container, stream, config, lambda _: None)
        return [(s, s.render()) for s in video._sampled(pictures, config)]


def ours_cuts(samples: list[Any]) -> list[float]:
    from cart_qdrant.media.shots import cut

    shots = list(cut((s for s, _ in samples), SegmentConfig(max_shot=1e6, max_side=128)))
    return [shot.start for shot in shots[1:]]


def scenedetect_cuts(samples: list[Any], detector: Any) -> list[float]:
    import scenedetect

    cuts: list[float] = []
    rate = 4.0
    for n, (_, rgb) in enumerate(samples):
        code = scenedetect.FrameTimecode(n, rate)
        cuts += [
            c.seconds for c in detector.process_frame(code, np.ascontiguousarray(rgb[..., ::-1]))
        ]
    last = scenedetect.FrameTimecode(max(0, len(samples) - 1), rate)
    cuts += [c.seconds for c in detector.post_process(last)]
    return cuts


def made_videos() -> dict[str, tuple[list[make.ByteArray], list[float]]]:
    """Frames at four a second, and the cuts in seconds."""
    out: dict[str, tuple[list[make.ByteArray], list[float]]] = {}
    chance = random.Random(0)
    for n in range(20):
        lengths = [chance.randint(6, 36) for _ in range(chance.randint(2, 5))]
        frames = [f for k, count in enumerate(lengths) for f in make.moving(9 * n + k, count)]
        out[f"hard cuts {n}"] = frames, [sum(lengths[:k]) / 4 for k in range(1, len(lengths))]
    for n in range(10):
        a, b = make.moving(50 + n, 16), make.moving(70 + n, 16)
        mix = [(a[-1] * (1 - w) + b[0] * w).astype(np.uint8) for w in (0.33, 0.67)]
        out[f"dissolve {n}"] = [*a, *mix, *b], [4.25]
    for n in range(10):
        frames = make.moving(90 + n, 20)
        frames[10] = np.full_like(frames[10], 255)
        out[f"flash {n}"] = frames, []
        wide = make.scene(110 + n, width=1600)
        out[f"pan {n}"] = [wide[:, 8 * k : 8 * k + 160] for k in range(36)], []
    return out


def matched(a: list[float], b: list[float], within: float = 0.51) -> int:
    left, count = list(b), 0
    for time_a in a:
        near = min(left, key=lambda t: abs(t - time_a), default=None)
        if near is not None and abs(near - time_a) <= within:
            left.remove(near)
            count += 1
    return count


def shots() -> None:
    from scenedetect.detectors import AdaptiveDetector, ContentDetector

    from cart_qdrant.media.shots import Look, Sample

    def small(frame: make.ByteArray) -> make.ByteArray:
        return np.asarray(Image.fromarray(frame).resize((32, 32), Image.Resampling.BOX))

    made = {
        name: (
            [
                (Sample(n / 4, (n + 1) / 4, Look(small(f)), lambda f=f: f), f)  # type: ignore[misc]
                for n, f in enumerate(frames)
            ],
            cuts,
        )
        for name, (frames, cuts) in made_videos().items()
    }
    real = {path.name: sampled(path) for path in sorted((DATA / "videos").glob("*.mp4"))}
    print(f"({len(real)} videos, {sum(map(len, real.values()))} sampled frames)")
    candidates: dict[str, Callable[[list[Any]], list[float]]] = {
        "ours": ours_cuts,
        "PySceneDetect content": lambda s: scenedetect_cuts(s, ContentDetector(min_scene_len=4)),
        "PySceneDetect adaptive": lambda s: scenedetect_cuts(s, AdaptiveDetector(min_scene_len=4)),
    }
    ours = {name: ours_cuts(samples) for name, samples in real.items()}
    for candidate, find in candidates.items():
        columns = []
        for kind in ("hard cuts", "dissolve", "flash", "pan"):
            right = found_all = wanted_all = 0
            for name, (samples, cuts) in made.items():
                if name.startswith(kind):
                    found = find(samples)
                    right += matched(found, cuts)
                    found_all, wanted_all = found_all + len(found), wanted_all + len(cuts)
            columns.append(f"{kind}: {right} of {wanted_all}, {found_all - right} false")
        begin = time.perf_counter()
        cuts = {name: find(samples) for name, samples in real.items()}
        spent = time.perf_counter() - begin
        common = sum(matched(cuts[name], ours[name]) for name in real)
        count = sum(map(len, cuts.values()))
        row(
            "shots", candidate, *columns, f"{count} cuts in real videos, {common} as ours",
            f"{spent / max(1, sum(map(len, real.values()))) * 1e6:.0f} us a frame",
        )  # fmt: skip


# Downloads

CONTENT = bytes(range(256)) * 20_000


@contextmanager
def server() -> Iterator[tuple[str, list[str | None], dict[str, int | None]]]:
    asked: list[str | None] = []
    cut: dict[str, int | None] = {"at": 1_000_000}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            given = self.headers.get("Range")
            asked.append(given)
            begin = int(re.findall(r"\d+", given)[0]) if given else 0
            self.send_response(206 if given else 200)
            body = CONTENT[begin:]
            self.send_header("Content-Length", str(len(body)))
            if given:
                self.send_header(
                    "Content-Range", f"bytes {begin}-{len(CONTENT) - 1}/{len(CONTENT)}"
                )
            self.end_headers()
            self.wfile.write(body[: cut["at"]])

        def log_message(self, *_: object) -> None:
            return

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{httpd.server_port}/model.bin", asked, cut
    httpd.shutdown()
    httpd.server_close()


def downloads() -> None:
    digest = hashlib.sha256(CONTENT).hexdigest()

    def ours(url: str, folder: Path) -> None:
        from cart_qdrant.embedders.hub import RemoteFile, download

        remote = RemoteFile(url=url, sha256=digest, bytes=len(CONTENT))
        download(remote, folder / "model.bin", lambda _: None)

    def pooch(url: str, folder: Path) -> None:
        import pooch

        pooch.retrieve(url, known_hash=f"sha256:{digest}", fname="model.bin", path=folder)

    def hub(url: str, folder: Path) -> None:
        from huggingface_hub.file_download import http_get

        part = folder / "model.bin.part"
        with part.open("ab") as file:
            there = file.tell()
            http_get(url, file, resume_size=there, expected_size=len(CONTENT))  # type: ignore[arg-type]
        part.replace(folder / "model.bin")

    for candidate, fetch in (("ours", ours), ("pooch", pooch), ("huggingface_hub http_get", hub)):
        with tempfile.TemporaryDirectory() as name, server() as (url, asked, cut):
            folder = Path(name)
            try:
                fetch(url, folder)
                first = "first call succeeds"
            except Exception as error:  # noqa: BLE001 - each library has its own
                first = f"cut off: {type(error).__name__}"
            kept = sum(path.stat().st_size for path in folder.iterdir())
            calls, cut["at"] = len(asked), None
            try:
                fetch(url, folder)
                whole = (folder / "model.bin").read_bytes() == CONTENT
            except Exception as error:  # noqa: BLE001
                whole = type(error).__name__
            row(
                "downloads", candidate, first, f"{kept:,} bytes kept",
                f"asks again {asked[calls:]}", f"whole {whole}", f"{calls} requests before",
            )  # fmt: skip


PARTS: dict[str, Callable[[], None]] = {
    "exif": exif, "sniff": sniffing,
    "shots": shots, "downloads": downloads,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", default=list(PARTS), choices=[*PARTS, []])
    for part in parser.parse_args().parts:
        PARTS[part]()


if __name__ == "__main__":
    main()
