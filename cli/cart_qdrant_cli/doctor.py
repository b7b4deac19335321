"""`cartq doctor`: checks an index and repairs it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from cart_qdrant.errors import MismatchError
from cart_qdrant_cli.health import health_json, show_health
from cart_qdrant_cli.options import (
    CollectionOption,
    IndexOption,
    JsonOption,
    UrlOption,
    VerboseOption,
    add_command,
    examples,
    resolve,
)
from cart_qdrant_cli.output import (
    Reporter,
    plain,
    print_json,
    remark,
    reporting,
    stdout,
    verdict,
)

if TYPE_CHECKING:
    from cart_qdrant.index.health import Health
    from cart_qdrant.index.index import Index
    from cart_qdrant.index.manifest import Artifact

EXAMPLES = examples("cartq doctor", "cartq doctor --fix", "cartq doctor --json")


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What the checks of an index found.

    Attributes:
        health: State of the identifiers; None where they cannot be read, or there are none.
        broken: Artefacts that are missing or were changed, each with what is wrong.
        diagnostics: Training diagnostics that need attention, each with its remedy; no failures.
    """

    health: Health | None
    broken: dict[str, str]
    diagnostics: list[str]

    @property
    def passed(self) -> bool:
        """Whether no file is broken and the identifiers pass."""
        return not self.broken and (self.health is None or self.health.passed)

    def to_json(self) -> dict[str, Any]:
        """The object of `doctor --json`."""
        out = {} if self.health is None else health_json(self.health)
        return {
            **out,
            "passed": self.passed,
            "broken": self.broken,
            "diagnostics": self.diagnostics,
        }


def doctor(
    context: typer.Context,
    fix: Annotated[
        bool,
        typer.Option(
            "--fix",
            help="Repair what fails: fit the identifiers again, and make this folder the owner "
            "of its collection on a server.",
        ),
    ] = False,
    json: JsonOption = False,
    index: IndexOption = None,
    url: UrlOption = None,
    collection: CollectionOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Check the identifiers and the files of an index.

    Exit code 1: it fails; what is wrong is listed with the remedy.
    """
    target = resolve(context, index=index, url=url, collection=collection, verbose=verbose)
    # Locked before it is opened: a repair must not undo what another run has just finished.
    with target.writing(trust_folder=True) if fix else target.open() as opened:
        if fix and opened.manifest.store.kind != "edge" and opened.take_ownership():
            remark("This folder now owns the collection.")
        found = diagnose(opened)
        if fix and not found.passed:
            with reporting("items") as reporter:
                repair(opened, found, reporter)
            found = diagnose(opened)
        elif fix:
            remark("The index passes all checks: nothing was repaired.")
    if json:
        print_json(found.to_json())
    else:
        _show(found)
    if not found.passed:
        raise typer.Exit(1)


def diagnose(index: Index) -> Diagnosis:
    """Check the artefacts against the manifest, then measure the identifiers."""
    from cart_qdrant.evaluation.training_diagnostics import read_diagnostics
    from cart_qdrant.index.health import check

    manifest = index.manifest
    parts: dict[str, Artifact | None] = {
        "statistics": manifest.embedder.statistics,
        "text_anchors": manifest.embedder.text_anchors,
    }
    if manifest.identifiers is not None:
        parts["books"] = manifest.identifiers.books
        parts["trie"] = manifest.identifiers.trie
        parts["items"] = manifest.identifiers.items
    if manifest.generator is not None:
        parts["generator"] = manifest.generator.folder
    if manifest.captions.encoder not in parts.values():
        parts["caption_encoder"] = manifest.captions.encoder
    broken: dict[str, str] = {}
    for name, part in parts.items():
        try:
            if part is not None:
                index.folder.path(part, rehash=True)
        except MismatchError as error:
            broken[name] = error.what
    health = None if "books" in broken else check(index)
    trained = manifest.generator
    diagnostics = [] if trained is None else read_diagnostics(trained.summary)
    return Diagnosis(health, broken, diagnostics)


def repair(index: Index, found: Diagnosis, reporter: Reporter) -> None:
    """Make again what can be made from the stored vectors, and report what cannot."""
    from cart_qdrant.index.health import check
    from cart_qdrant.index.identify import assign_new, refit

    if "statistics" in found.broken:
        reporter.say(
            "The embedder's statistics cannot be made again from the points: "
            "ingest into another --index."
        )
    if "text_anchors" in found.broken:
        index.put(
            replace(index.manifest, embedder=replace(index.manifest.embedder, text_anchors=None))
        )
        reporter.say("The next `cartq ingest` writes the text anchors of the embedder again.")
    trained = index.manifest.generator is not None
    if {"generator", "caption_encoder"} & found.broken.keys():
        _drop_model(index, found, reporter)
    health = found.health
    torn = {"trie", "items"} & found.broken.keys() or (health and not health.complete)
    if torn and "books" not in found.broken:
        reporter.phase("reading identifiers", None)
        assign_new(index, rebuild=True)
        health = check(index)
    if "books" in found.broken or (health and not health.passed):
        reporter.phase("fitting identifiers again", None)
        refit(index)
    if trained and index.manifest.generator is None:
        reporter.say("The generator does not fit any more: run `cartq train`.")


def _drop_model(index: Index, found: Diagnosis, reporter: Reporter) -> None:
    """Go on without a broken model; captions that it has encoded are encoded without it."""
    from cart_qdrant.index.caption_vectors import with_captions, write_sentence_vectors

    manifest, generator = index.manifest, index.manifest.generator
    encoder = manifest.captions.encoder
    is_same = generator is not None and generator.folder == encoder
    if "caption_encoder" in found.broken or ("generator" in found.broken and is_same):
        made = write_sentence_vectors(index, reporter)
        manifest = with_captions(index.manifest, made)
    if "generator" in found.broken:
        manifest = replace(manifest, generator=None)
    index.put(manifest)


def _show(found: Diagnosis) -> None:
    console = stdout()
    for what in found.broken.values():
        console.print(Text.assemble(("✗ ", "bold red"), plain(what)))
    if found.health is not None:
        show_health(console, found.health)
    elif not found.broken:
        console.print("The index is empty.")
    for line in found.diagnostics:
        console.print(Text.assemble(("! ", "bold yellow"), plain(line)))
    if found.broken:
        console.print(Text.assemble(verdict(False), "  Repair: cartq doctor --fix"))


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    add_command(app, doctor, EXAMPLES)
