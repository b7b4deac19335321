"""Compare hand-written parts of `captions` with well-kept libraries.

    python -m benchmarks.caption_libraries

Needs pysubs2 and charset-normalizer. Prints one table row a candidate.
"""

# ruff: noqa: RUF001

from __future__ import annotations

import random
from collections.abc import Callable

from benchmarks.media_libraries import microseconds, row

# Subtitles

Cues = list[tuple[str, float, float]]

CASES: dict[str, tuple[str, Cues]] = {
    "italics": ("<i>A dog</i> <b>surfs</b>", [("A dog surfs", 1, 2)]),
    "voice": ("<v Bob>Look:</v> <c.loud>a dog</c>", [("Look: a dog", 1, 2)]),
    "karaoke": ("a<00:00:01.500> dog", [("a dog", 1, 2)]),
    "override": (r"{\an8}A dog", [("A dog", 1, 2)]),
    "font": ('<font color="#fff">A dog</font>', [("A dog", 1, 2)]),
    "entities": ("salt &amp; pepper &lt;3", [("salt & pepper <3", 1, 2)]),
    "comparison": ("3 < 4 and 5 > 4", [("3 < 4 and 5 > 4", 1, 2)]),
}
WHOLE: dict[str, tuple[str, Cues]] = {
    "no blank line": (
        "1\n00:00:01,000 --> 00:00:02,000\none\n2\n00:00:03,000 --> 00:00:04,000\ntwo",
        [("one", 1, 2), ("two", 3, 4)],
    ),
    "one bad timing": (
        "1\n00:00:xx --> 00:00:02\nlost\n\n2\n00:00:06,25 --> 00:00:07,5\nkept\n",
        [("kept", 6.25, 7.5)],
    ),
    "ends before it starts": (
        "3\n00:00:05,0 --> 00:00:04,0\nlost\n\n4\n00:00:06,250 --> 00:00:07,500\nkept\n",
        [("kept", 6.25, 7.5)],
    ),
    "no words": ("00:00:01,000 --> 00:00:02,000\n♪ ♪\n", []),
    "hours missing": ("00:01.000 --> 00:02.000\nshort\n", [("short", 1, 2)]),
    "old Macintosh line ends": ("1\r00:00:01,000 --> 00:00:02,000\rone\r", [("one", 1, 2)]),
}


def ours_subtitles(text: str) -> Cues:
    from cart_qdrant.captions.subtitles import parse_subtitles

    return [(cue.text, cue.start, cue.end) for cue in parse_subtitles(text).cues]


def pysubs2_subtitles(text: str) -> Cues:
    """As a product would use it: the library reads and removes markup, we clean the text."""
    import html

    import pysubs2

    from cart_qdrant.captions.text import clean_text, has_words

    kind = "vtt" if text.lstrip("\ufeff").startswith("WEBVTT") else "srt"
    found = []
    for event in pysubs2.SSAFile.from_string(text, format_=kind):
        plain = clean_text(html.unescape(event.plaintext))
        if has_words(plain) and event.end > event.start:
            found.append((plain, event.start / 1000, event.end / 1000))
    return sorted(found, key=lambda cue: cue[1:])


def subtitles() -> None:
    cases = {n: (f"00:00:01,000 --> 00:00:02,000\n{t}\n", c) for n, (t, c) in CASES.items()} | WHOLE

    def stamp(ms: int) -> str:
        return f"{ms // 3_600_000:02}:{ms // 60_000 % 60:02}:{ms // 1000 % 60:02},{ms % 1000:03}"

    chance = random.Random(0)
    files = []
    for _ in range(200):
        cues, at = [], 0
        for _ in range(chance.randint(1, 40)):
            at += chance.randint(0, 90_000)
            end = at + chance.randint(1, 60_000)
            words = " ".join(chance.choice(["a dog", "surfs", "42", "über"]) for _ in range(3))
            cues.append((words, at / 1000, end / 1000))
        text = "\n\n".join(
            f"{n}\n{stamp(round(a * 1000))} --> {stamp(round(b * 1000))}\n{words}"
            for n, (words, a, b) in enumerate(cues, 1)
        )
        files.append((text, cues))
    long = "\n\n".join(files[n % 200][0] for n in range(400))
    for name, read in (("ours", ours_subtitles), ("pysubs2", pysubs2_subtitles)):
        wrong = []
        for case, (text, wanted) in cases.items():
            try:
                good = read(text) == wanted
            except Exception as error:  # noqa: BLE001 - what a damaged file does to a library
                good = False
                case += f" ({type(error).__name__})"
            if not good:
                wrong.append(case)
        same = sum(
            sorted((t, round(a, 3), round(b, 3)) for t, a, b in read(text)) == sorted(cues)
            for text, cues in files
        )
        cost = microseconds(lambda read=read: read(long), 1)  # type: ignore[misc]
        row(
            "subtitles", name, f"{len(cases) - len(wrong)} of {len(cases)} cases",
            f"{same} of 200 written files", f"{cost / 1000:.0f} ms for {len(ours_subtitles(long))}"
            " cues", "wrong: " + (", ".join(wrong) or "none"),
        )  # fmt: skip


# Encodings

SENTENCES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("Ein Mädchen über dem Fluß fängt schöne große Fische.", ("cp1252", "latin-1")),
    ("Un garçon à vélo près de la forêt, où il a été blessé.", ("cp1252", "latin-1")),
    ("El niño pequeño corrió mañana detrás del pingüino.", ("cp1252", "latin-1")),
    ("En liten pojke åker på en röd båt över sjön.", ("cp1252", "latin-1")),
    ("Mała dziewczynka łapie piłkę nad jeziorem, obok żółtej łodzi.", ("cp1250", "iso8859-2")),
    ("Malý chlapec běží přes louku za žlutým míčem.", ("cp1250", "iso8859-2")),
    ("Маленькая девочка бежит по берегу моря с собакой.", ("cp1251", "koi8-r")),
    ("Ένα μικρό κορίτσι τρέχει στην παραλία με τον σκύλο.", ("cp1253",)),
    ("Küçük bir kız köpeğiyle birlikte sahilde koşuyor.", ("cp1254",)),
    ("ילדה קטנה רצה על החוף עם הכלב שלה.", ("cp1255",)),
    ("فتاة صغيرة تركض على الشاطئ مع كلبها.", ("cp1256",)),
    ("小さな女の子が犬と一緒に浜辺を走っている。", ("shift_jis", "euc_jp")),
    ("一个小女孩和她的狗在海滩上奔跑。", ("gb18030", "big5")),
    ("작은 소녀가 개와 함께 해변을 달리고 있다.", ("euc_kr",)),
)


def unicode_first(data: bytes, rest: Callable[[bytes], str]) -> str:
    for mark, name in ((b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16")):
        if data.startswith(mark):
            return data.decode(name, "replace")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return rest(data)


def western(data: bytes) -> str:
    try:
        return data.decode("cp1252")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def normalizer(data: bytes) -> str:
    from charset_normalizer import from_bytes

    best = from_bytes(data).best()
    return data.decode("latin-1") if best is None else str(best)


def encodings() -> None:
    from cart_qdrant.captions.encoding import decode_text

    candidates: dict[str, Callable[[bytes], str]] = {
        "UTF, else Windows-1252": lambda data: unicode_first(data, western),
        "charset-normalizer": normalizer,
        "UTF, else charset-normalizer": lambda data: unicode_first(data, normalizer),
        "`decode_text`": decode_text,
    }
    for name, read in candidates.items():
        counts = {}
        for label, repeats in (("a sentence", 1), ("ten sentences", 10)):
            for group, chosen in (("UTF-8", ("utf-8",)), ("Western", None), ("others", ())):
                right = total = 0
                for text, own in SENTENCES:
                    is_western = "latin-1" in own
                    names = chosen or own
                    if (group, is_western) in {("Western", False), ("others", True)}:
                        continue
                    for encoding in names:
                        try:
                            data = "\n".join([text] * repeats).encode(encoding)
                        except UnicodeEncodeError:
                            continue
                        total += 1
                        right += read(data).split("\n")[0] == text
                counts[f"{group}, {label}"] = f"{right} of {total}"
        utf8 = "\n".join([SENTENCES[0][0]] * 10).encode()
        latin = "\n".join([SENTENCES[0][0]] * 10).encode("latin-1")
        cost = microseconds(lambda: read(utf8), 20), microseconds(lambda: read(latin), 5)  # noqa: B023
        row(
            "encodings", name, *(f"{key}: {value}" for key, value in counts.items()),
            f"{cost[0]:.0f} us UTF-8, {cost[1]:.0f} us Latin-1",
        )  # fmt: skip


if __name__ == "__main__":
    subtitles()
    encodings()
