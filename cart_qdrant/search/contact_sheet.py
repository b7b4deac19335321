"""Writes hits as a contact sheet: one HTML file of thumbnails without scripts or other files."""

from __future__ import annotations

import base64
import tempfile
from collections.abc import Sequence
from html import escape
from pathlib import Path

from cart_qdrant.errors import MediaError, UsageError
from cart_qdrant.media.folder import MediaFolder
from cart_qdrant.media.thumbnails import thumbnail
from cart_qdrant.records import Hit, Modality, clock, fixed

_STYLE = """
:root { color-scheme: light dark; --ground: #f6f7f9; --card: #fff; --tile: #e9ecf1;
  --text: #1b1f27; --soft: #667085; --line: #dfe3ea; --accent: #2f63d6; }
@media (prefers-color-scheme: dark) { :root { --ground: #14161b; --card: #1d2027; --tile: #282c35;
  --text: #e8eaee; --soft: #98a1b0; --line: #2e333d; --accent: #8fb2ff; } }
* { box-sizing: border-box; }
body { margin: 0; padding: 28px clamp(16px, 4vw, 48px) 48px; background: var(--ground);
  color: var(--text); font: 15px/1.45 system-ui, "Segoe UI", Roboto, sans-serif; }
header { margin-bottom: 22px; }
h1 { margin: 0; font-size: 24px; line-height: 1.25; overflow-wrap: anywhere; }
header p { margin: 4px 0 0; color: var(--soft); font-size: 14px; overflow-wrap: anywhere; }
ol { list-style: none; margin: 0; padding: 0; display: grid; gap: 18px;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 210px), 1fr)); }
li { background: var(--card); border: 1px solid var(--line); border-radius: 12px;
  overflow: hidden; display: flex; flex-direction: column; }
.tile { position: relative; display: block; aspect-ratio: 3 / 2; background: var(--tile);
  text-decoration: none; }
.tile img { position: absolute; width: 100%; height: 100%; object-fit: contain; }
.none { display: grid; place-items: center; height: 100%; color: var(--soft); font-size: 14px;
  padding: 36px 16px; text-align: center; overflow-wrap: anywhere; }
.rank, .time { position: absolute; padding: 1px 8px; border-radius: 999px; font-size: 13px;
  background: rgb(15 17 22 / 78%); color: #fff; font-variant-numeric: tabular-nums; }
.rank { left: 8px; top: 8px; font-weight: 600; }
.time { right: 8px; bottom: 8px; }
.text { padding: 10px 12px 12px; display: flex; flex-direction: column; gap: 6px; flex: 1; }
.caption { margin: 0; overflow-wrap: anywhere; display: -webkit-box; -webkit-line-clamp: 4;
  -webkit-box-orient: vertical; overflow: hidden; }
.caption.no { color: var(--soft); }
.path { font-size: 13px; color: var(--accent); text-decoration: none; overflow-wrap: anywhere; }
.path:hover { text-decoration: underline; }
.why { margin-top: auto; padding-top: 4px; display: flex; flex-wrap: wrap; gap: 4px 10px;
  color: var(--soft); font-size: 13px; font-variant-numeric: tabular-nums; }
.why code { font: 12px/1.6 ui-monospace, "SF Mono", Consolas, monospace; }
.why span { white-space: nowrap; }
@media print { li { break-inside: avoid; } }
"""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<header><h1><bdi>{title}</bdi></h1><p>{summary}</p></header>
<main>{cards}</main>
</body>
</html>
"""

_CARD = """<li>
<a class="tile"{link}>{picture}<span class="rank">{rank}</span>{time}</a>
<div class="text">
{caption}
<a class="path"{link}><bdi>{path}</bdi></a>
<div class="why">{quality}<span title="lane">{lane}</span>{identifier}</div>
</div>
</li>"""


def contact_sheet(
    query: str, hits: Sequence[Hit], *, media: MediaFolder, out: Path, took_ms: float | None = None
) -> Path:
    """Write the hits as a page of thumbnails that needs no other file.

    A file that is missing, cannot be decoded or may not be opened becomes a grey tile that says so.

    Args:
        query: The query, which becomes the title.
        hits: Hits, best first.
        media: The folder that the hits' paths are relative to.
        out: The HTML file; it is replaced only when the page is complete.
        took_ms: Milliseconds that the search took; shown where given.

    Returns:
        `out`.

    Raises:
        UsageError: `out` cannot be written.
    """
    count = f"{len(hits)} hit{'' if len(hits) == 1 else 's'}"
    took = [] if took_ms is None else [f"{took_ms:.1f} ms"]
    cards = "\n".join(_card(hit, media) for hit in hits)
    page = _PAGE.format(
        title=_text(query),
        style=_STYLE,
        summary=" · ".join([count, *took, _text(str(media.base.absolute()))]),
        cards=f"<ol>\n{cards}\n</ol>" if hits else '<p class="none">Nothing found.</p>',
    )
    try:
        _replace(out, page)
    except OSError as error:
        raise UsageError(
            f"The contact sheet cannot be written to {out}: {error.strerror or error}.",
            "Name a file in a folder that you can write to.",
        ) from error
    return out


def _card(hit: Hit, media: MediaFolder) -> str:
    timed = hit.modality is not Modality.IMAGE
    link = ""
    try:
        path = media.file(hit.path)
        link = path.as_uri() + (f"#t={hit.start:g}" if timed else "")
        picture = _picture(hit, path)
    except MediaError as error:
        picture = f'<span class="none">{_text(error.what)}</span>'
    times = f"{clock(hit.start)}–{clock(hit.end)}"  # noqa: RUF001
    caption = '<p class="caption no">no caption</p>'
    if hit.caption:
        caption = f'<p class="caption" title="{_text(hit.caption)}">{_text(hit.caption)}</p>'
    return _CARD.format(
        link=f' href="{_text(link)}"' if link else "",
        picture=picture,
        rank=hit.rank,
        time=f'<span class="time">{times}</span>' if timed else "",
        caption=caption,
        path=_text(hit.path).replace("/", "/<wbr>").replace("_", "_<wbr>"),
        quality=_quality(hit),
        lane=_text(hit.lane),
        identifier=f'<code title="identifier">{_text(hit.identifier)}</code>'
        if hit.identifier
        else "",
    )


def _quality(hit: Hit) -> str:
    """The confidence of a hit where it is known, else its similarity."""
    if hit.confidence is not None:
        return f"<span>confidence {100 * hit.confidence:.0f} %</span>"
    return "" if hit.similarity is None else f"<span>similarity {fixed(hit.similarity)}</span>"


def _picture(hit: Hit, path: Path) -> str:
    made = thumbnail(path, hit.modality, hit.start, hit.end)
    data = base64.b64encode(made.data).decode()
    return f'<img alt="{_text(hit.caption or hit.path)}" src="data:{made.mime};base64,{data}">'


def _text(text: str) -> str:
    """The text, escaped for HTML; bytes of a file name that are not UTF-8 become `?`."""
    return escape(text.encode("utf-8", "replace").decode(), quote=True)


def _replace(out: Path, page: str) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(
        "w", encoding="utf-8", dir=out.parent, prefix=".", suffix=".html", delete=False
    ) as file:
        draft = Path(file.name)
        file.write(page)
    try:
        draft.chmod(0o644)
        draft.replace(out)
    except OSError:
        draft.unlink(missing_ok=True)
        raise
