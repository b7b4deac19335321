"""Queries by picture, clip and sound: near copies, and pictures mixed with texts.

    python benchmarks/examples.py /tmp/new/.cartq ../shared/data
    python benchmarks/examples.py /tmp/videos/0/.cartq ../shared/data --kind videos
    python benchmarks/examples.py /tmp/sounds/0/.cartq ../shared/data --kind sounds

Takes an index that `quality.py` has trained. Copies are made of its files (cropped, re-encoded,
mirrored, faster, noisy) and asked with; right is the file that a copy was made of. Mixes ask with a
caption and a picture of 12 x 12 pixels together. Prints one Markdown table.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter, ImageOps

from cart_qdrant.search.lanes import Lane
from cart_qdrant.search.query import Part, Query
from cart_qdrant.search.retriever import Retriever

RATE = 16_000
Samples = npt.NDArray[np.float32]


def main() -> None:
    """Make copies, ask, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("index", type=Path, help="trained index")
    parser.add_argument("data", type=Path, help="folder with photos/, videos/ and sounds/")
    parser.add_argument("--kind", choices=["photos", "videos", "sounds"], default="photos")
    parser.add_argument("--asked", type=int, default=200, help="files at most")
    given = parser.parse_args()
    source = given.data / given.kind
    rows = [json.loads(line) for line in (source / "metadata.jsonl").read_text().splitlines()]
    if given.kind == "photos":
        rows = [row for row in rows if row["split"] == "dev"]
    picked = np.random.default_rng(0).permutation(len(rows))[: given.asked]
    chosen = [rows[n] for n in sorted(picked)]
    with tempfile.TemporaryDirectory() as folder:
        # A copy: the embedded store belongs to one process.
        root = Path(shutil.copytree(given.index, Path(folder) / ".cartq"))
        with Retriever.open(root) as retriever:
            print("| query | lane | n | R@1 | R@10 | p50 ms |")
            print("|---|---|---:|---:|---:|---:|")
            KINDS[given.kind](retriever, source, chosen, Path(folder))


def ask(
    name: str,
    retriever: Retriever,
    queries: Sequence[Query],
    right: Sequence[str],
    lanes: Sequence[Lane] = ("dense", "generative"),
) -> None:
    """One row a lane."""
    for lane in lanes:
        found = retriever.search_many(queries, k=10, lane=lane)
        ranks = [
            next((hit.rank for hit in one.hits if hit.path.endswith(file)), 99)
            for one, file in zip(found, right, strict=True)
        ]
        ms = np.median([one.took_ms["total"] for one in found])
        recall = [100 * np.mean([rank <= k for rank in ranks]) for k in (1, 10)]
        cells = [name, lane, str(len(queries)), *(f"{one:.1f}" for one in recall), f"{ms:.0f}"]
        print(f"| {' | '.join(cells)} |", flush=True)


def photos(retriever: Retriever, source: Path, rows: list[dict[str, Any]], folder: Path) -> None:
    """Near copies of pictures, then mixes."""
    names = [row["file_name"] for row in rows]

    def jpeg(picture: Image.Image, quality: int) -> Image.Image:
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=quality)
        return Image.open(file)

    copies: dict[str, Callable[[Image.Image], Image.Image]] = {
        "JPEG, quality 10": lambda x: jpeg(x, 10),
        "half of each side, from the middle": lambda x: x.crop(
            (x.width // 4, x.height // 4, 3 * x.width // 4, 3 * x.height // 4)
        ),
        "mirrored": ImageOps.mirror,
        "grey": lambda x: ImageOps.grayscale(x).convert("RGB"),
        "blurred (4 pixels)": lambda x: x.filter(ImageFilter.GaussianBlur(4)),
    }
    for what, change in copies.items():
        queries = []
        for name in names:
            path = folder / f"{what[:4]}-{name}.png"
            change(Image.open(source / name).convert("RGB")).save(path)
            queries.append(Query((Part("image", str(path)),)))
        ask(what, retriever, queries, names)

    texts = [row["captions"][0] for row in rows]
    tiny = []
    for name in names:
        path = folder / f"tiny-{name}.png"
        small = Image.open(source / name).convert("RGB").resize((12, 12))
        small.resize((224, 224), Image.Resampling.BICUBIC).save(path)
        tiny.append(str(path))
    for share in (0.0, 0.3, 0.5, 0.7, 1.0):
        queries = []
        for text, path in zip(texts, tiny, strict=True):
            parts = [Part("text", text, 1 - share)] if share < 1 else []
            parts += [Part("image", path, share)] if share > 0 else []
            queries.append(Query(tuple(parts)))
        what = {0.0: "caption alone", 1.0: "12 x 12 pixels alone"}.get(
            share, f"{1 - share:.1f} caption + {share} pixels"
        )
        # A text alone may be answered by all lanes; here by its vector, as the mixes are.
        ask(what, retriever, queries, names, ("dense",))


def videos(retriever: Retriever, source: Path, rows: list[dict[str, Any]], folder: Path) -> None:
    """Near copies of clips."""
    names = [row["file_name"] for row in rows]
    for what, size, crf, speed in (
        ("160 pixels wide, crf 40", 160, 40, 1.0),
        ("half as fast again", 320, 28, 1.5),
        ("both, mirrored", 160, 40, -1.5),
    ):
        queries = []
        for name in names:
            path = folder / f"{size}-{speed}-{name}"
            reencode(source / name, path, width=size, crf=crf, speed=speed)
            queries.append(Query((Part("image", str(path)),)))
        ask(what, retriever, queries, names)


def reencode(source: Path, path: Path, *, width: int, crf: int, speed: float) -> None:
    """The pictures of a clip, smaller, faster; mirrored where speed is negative."""
    with av.open(str(source)) as old, av.open(str(path), "w") as new:
        stream = old.streams.video[0]
        rate = Fraction(stream.average_rate or 25).limit_denominator(1000)
        out = new.add_stream("libx264", rate=rate, options={"crf": str(crf)})
        height = round(stream.height * width / stream.width / 2) * 2
        out.width, out.height, out.pix_fmt = width, height, "yuv420p"
        due = 0.0
        for n, frame in enumerate(old.decode(stream)):
            if n < due:
                continue
            due += abs(speed)
            picture = frame.to_image().resize((width, height))
            if speed < 0:
                picture = ImageOps.mirror(picture)
            for packet in out.encode(av.VideoFrame.from_image(picture)):
                new.mux(packet)
        for packet in out.encode():
            new.mux(packet)


def sounds(retriever: Retriever, source: Path, rows: list[dict[str, Any]], folder: Path) -> None:
    """Near copies of sounds."""
    names = [row["file_name"] for row in rows]
    rng = np.random.default_rng(0)

    def noisy(x: Samples) -> Samples:
        level = 10 ** (-10 / 20) * float(np.sqrt((x**2).mean()))
        return (x + level * rng.standard_normal(len(x))).astype(np.float32)

    copies: dict[str, Callable[[Samples], Samples]] = {
        "mp3, 24 kbit/s": lambda x: x,
        "a tenth faster": lambda x: np.interp(
            np.arange(0, len(x), 1.1), np.arange(len(x)), x
        ).astype(np.float32),
        "noise, 10 dB below": noisy,
        "the second half": lambda x: x[len(x) // 2 :],
    }
    for what, change in copies.items():
        queries = []
        for name in names:
            path = folder / f"{what[:5]}-{Path(name).stem}.{'mp3' if 'mp3' in what else 'wav'}"
            write_sound(path, change(read_sound(source / name)))
            queries.append(Query((Part("audio", str(path)),)))
        ask(what, retriever, queries, names)


def read_sound(path: Path) -> Samples:
    """Mono samples at 16 kHz."""
    resampler = av.AudioResampler(format="flt", layout="mono", rate=RATE)
    with av.open(str(path)) as container:
        frames = [f for frame in container.decode(audio=0) for f in resampler.resample(frame)]
    return np.concatenate([frame.to_ndarray().ravel() for frame in frames]).astype(np.float32)


def write_sound(path: Path, x: Samples) -> None:
    """Write mono samples."""
    mp3 = path.suffix == ".mp3"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mp3" if mp3 else "pcm_s16le", rate=RATE)
        stream.layout = "mono"
        if mp3:
            stream.bit_rate = 24_000
        data = (np.clip(x, -1, 1) * 32767).astype(np.int16)[None]
        frame = av.AudioFrame.from_ndarray(data, format="s16", layout="mono")
        frame.rate = RATE
        resampler = av.AudioResampler(format=stream.format.name, layout="mono", rate=RATE)
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            for packet in stream.encode(part):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


KINDS: dict[str, Callable[[Retriever, Path, list[dict[str, Any]], Path], None]] = {
    "photos": photos,
    "videos": videos,
    "sounds": sounds,
}


if __name__ == "__main__":
    main()
