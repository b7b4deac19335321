"""`cartq info`: what an index holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from cart_qdrant.compute import described
from cart_qdrant_cli.options import (
    CollectionOption,
    IndexOption,
    JsonOption,
    Target,
    UrlOption,
    VerboseOption,
    add_command,
    examples,
    resolve,
)
from cart_qdrant_cli.output import facts, grid, plain, print_json, size, stdout

PACKAGES = ("cart-qdrant", "qdrant-edge-py", "qdrant-client", "torch")
"""Packages whose versions matter to a report of an error."""

EXAMPLES = examples("cartq info", "cartq info --index photos/.cartq --json")


def info(
    context: typer.Context,
    json: JsonOption = False,
    index: IndexOption = None,
    url: UrlOption = None,
    collection: CollectionOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Show counts, embedder, identifiers, generator, sizes and versions of an index."""
    target = resolve(context, index=index, url=url, collection=collection, verbose=verbose)
    found = describe_index(target)
    if json:
        print_json(found)
    else:
        show_info(stdout(), found)


def describe_index(target: Target) -> dict[str, Any]:
    """The object of `info --json`.

    Raises:
        IndexMissingError: There is no index.
    """
    from cart_qdrant.index.identify import made_of

    with target.open() as index:
        manifest, folder = index.manifest, index.folder
        kinds: Counter[str] = Counter()
        files: set[str] = set()
        for record in index.store.scroll(with_payload=["path", "modality"]):
            payload = record.payload or {}
            kinds[str(payload.get("modality"))] += 1
            files.add(str(payload.get("path")))
        identifiers, generator = manifest.identifiers, manifest.generator
        return {
            "index": str(folder.root),
            "version": manifest.version,
            "files": len(files),
            "segments": dict(sorted(kinds.items())),
            "store": {"kind": manifest.store.kind, "location": index.store.location},
            "embedder": {
                "name": manifest.embedder.name,
                "version": manifest.embedder.version,
                "model": manifest.embedder.model,
                "dim": manifest.embedder.dim,
                "spaces": manifest.embedder.spaces,
                "statistics_fitted": manifest.embedder.statistics is not None,
            },
            "cutting": {
                name: getattr(manifest.segments, name)
                for name in ("max_shot", "min_shot", "shot_threshold", "audio_window")
            },
            "identifiers": None
            if identifiers is None
            else {
                "version": identifiers.version,
                "field": identifiers.field,
                "levels": identifiers.levels,
                "count": identifiers.count,
                "unique_ratio": round(identifiers.unique_ratio, 4),
                "from": made_of(identifiers),
            },
            "generator": None
            if generator is None
            else {"version": generator.version, **generator.summary},
            "bytes": _sizes(folder.root),
            "packages": {name: version for name in PACKAGES if (version := _version(name))},
        }


def _version(package: str) -> str | None:
    """The version of a package; None where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _sizes(root: Path) -> dict[str, int]:
    """Bytes on disk of each file and folder of the index, by name, without empty ones."""
    out: Counter[str] = Counter()
    for path in root.rglob("*"):
        if path.is_file():
            # What is allocated: the engine keeps sparse files.
            out[path.relative_to(root).parts[0]] += path.stat().st_blocks * 512
    return {name: count for name, count in sorted(out.items()) if count}


def show_info(console: Console, found: dict[str, Any]) -> None:
    """The same for people."""
    from cart_qdrant.identifiers.parts import IN_WORDS

    segments = ", ".join(f"{count} {kind}" for kind, count in found["segments"].items())
    embedder, identifiers = found["embedder"], found["identifiers"]
    generator, bytes_, cutting = found["generator"], found["bytes"], found["cutting"]
    kinds = ", ".join(f"{kind} in {space}" for kind, space in embedder["spaces"].items())
    rows = {
        "index": f"{found['index']} (version {found['version']})",
        "store": f"{found['store']['kind']}: {found['store']['location']}",
        "files": str(found["files"]),
        "segments": segments or "none",
        "cut": f"shots of {cutting['min_shot']:g} to {cutting['max_shot']:g} s, "
        f"audio in windows of {cutting['audio_window']:g} s",
        "embedder": f"{embedder['name']} {embedder['model'] or embedder['version']}, "
        f"{embedder['dim']}-d ({kinds})",
        "identifiers": "none: run `cartq ingest`"
        if identifiers is None
        else f"version {identifiers['version']}, {identifiers['count']} of "
        f"{identifiers['levels']} levels, "
        f"unique-identifier ratio {identifiers['unique_ratio']:.3f}, "
        f"with captions made of {IN_WORDS[identifiers['from']]}",
        "generator": "none: run `cartq train`"
        if generator is None
        else ", ".join(f"{name} {_short(value)}" for name, value in _scalars(generator).items()),
        **_trained_on(generator),
        "on disk": f"{size(sum(bytes_.values()))} ("
        + ", ".join(f"{name} {size(count)}" for name, count in bytes_.items())
        + ")",
        "packages": ", ".join(f"{name} {version}" for name, version in found["packages"].items()),
    }
    console.print(facts(rows))
    if generator is not None and generator.get("held_out"):
        console.print()
        console.print(_held_out(generator["held_out"]))


def _trained_on(generator: Mapping[str, Any] | None) -> dict[str, str]:
    """A row of the device and the number format of the training; no row before one."""
    return {} if generator is None else {"trained on": described(generator["compute"])}


def _scalars(summary: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in summary.items() if not isinstance(value, Mapping)}


def _held_out(strata: Mapping[str, Mapping[str, Any]]) -> Table:
    """Recall of each lane on what was held out of training, in percent."""
    names = ("queries", "R@1", "95 %", "R@10", "95 %")
    table = grid("items", "lane", *names, title="Held out of training and of all choices",
                 right=names)  # fmt: skip
    for stratum, measured in strata.items():
        queries = measured["queries"]
        for lane, recall in measured.items():
            if isinstance(recall, Mapping):
                numbers: list[str] = []
                for name in ("R@1", "R@10"):
                    low, high = recall[f"{name} interval"]
                    numbers += [f"{100 * recall[name]:.1f}", f"{100 * low:.1f}-{100 * high:.1f}"]
                table.add_row(plain(stratum), plain(lane), str(queries), *numbers)
    return table


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    add_command(app, info, EXAMPLES)
