"""Options that several commands share, and the target that they describe."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from typer.core import TyperCommand

from cart_qdrant.compute import ComputeOptions
from cart_qdrant.records import Modality

if TYPE_CHECKING:
    from cart_qdrant.index.index import Index

DEFAULT_INDEX = Path(".cartq")
INDEX_VARIABLE = "CARTQ_INDEX"
KEY_VARIABLE = "CARTQ_API_KEY"


class Lane(StrEnum):
    """Ways to answer a query."""

    AUTO = "auto"
    GENERATIVE = "generative"
    DENSE = "dense"
    FUSED = "fused"
    CAPTION = "caption"
    BM25 = "bm25"
    RRF = "rrf"


class GroupBy(StrEnum):
    """Whether hits of one file are shown as one."""

    FILE = "file"
    NONE = "none"


class Profile(StrEnum):
    """How long training may take."""

    QUICK = "quick"
    DEFAULT = "default"
    THOROUGH = "thorough"


class MadeOf(StrEnum):
    """What identifiers of items with captions are made of."""

    MEDIA = "media"
    CAPTIONS = "captions"
    BOTH = "both"


class Device(StrEnum):
    """Where a command computes."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"
    MPS = "mps"


class Dtype(StrEnum):
    """In which number format a command computes."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


def _index(text: str) -> Path:
    """A folder as it is; of a URL, a copy for reading."""
    from cart_qdrant.index.remote import local_folder

    return local_folder(text)


IndexOption = Annotated[
    Path | None,
    typer.Option(
        "--index",
        parser=_index,
        metavar="FOLDER",
        help="Folder of the index, or a URL of one for reading (s3://...); .cartq unless "
        "CARTQ_INDEX names another.",
        show_default=False,
        rich_help_panel="Index",
    ),
]
UrlOption = Annotated[
    str | None,
    typer.Option(
        "--url",
        metavar="URL",
        help="Qdrant server that holds the points, such as http://localhost:6333; embedded in the "
        "index folder without it. Its key is read from CARTQ_API_KEY, and goes to no server that "
        "was not named here or in CARTQ_URL.",
        show_default=False,
        rich_help_panel="Index",
    ),
]
CollectionOption = Annotated[
    str | None,
    typer.Option(
        "--collection",
        metavar="NAME",
        help="Collection on the server.",
        show_default=False,
        rich_help_panel="Index",
    ),
]
VerboseOption = Annotated[
    bool,
    typer.Option("--verbose", "-v", help="Show all remarks, and the traceback of an error."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object, nothing else.")]
DeviceOption = Annotated[
    Device | None,
    typer.Option(
        "--device",
        help="Where to compute; auto, the default, takes a GPU that is there. CARTQ_DEVICE names "
        "another default.",
        show_default=False,
        rich_help_panel="Compute",
    ),
]
DtypeOption = Annotated[
    Dtype | None,
    typer.Option(
        "--dtype",
        help="Number format to compute in; auto, the default, measures for about a second which "
        "is quickest here. CARTQ_DTYPE names another default.",
        show_default=False,
        rich_help_panel="Compute",
    ),
]
FilterOption = Annotated[
    list[str] | None,
    typer.Option(
        "--filter",
        "-f",
        metavar="KEY=VALUE",
        help="Only items whose payload matches: year>=2020, camera=gopro,dji, caption~surf. "
        "Repeatable; all must hold.",
        show_default=False,
    ),
]
ModalityOption = Annotated[
    Modality | None,
    typer.Option("--modality", "-m", help="Only items of this modality.", show_default=False),
]


@dataclass(slots=True)
class State:
    """What was given before the command's name; the context's object."""

    index: Path | None = None
    url: str | None = None
    collection: str | None = None
    verbose: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The index that a command works on."""

    index: Path
    url: str | None = None
    collection: str | None = None
    api_key: str | None = field(default=None, repr=False)
    verbose: bool = False

    def open(self, *, trust_folder: bool = False) -> Index:
        """The index, opened.

        Args:
            trust_folder: Open the index even where the collection names another owner.

        Raises:
            IndexMissingError: There is none.
        """
        from cart_qdrant.index.index import Index

        return Index.open(
            self.index, url=self.url, api_key=self.api_key, collection=self.collection,
            trust_folder=trust_folder,
        )  # fmt: skip

    @contextmanager
    def writing(self, *, trust_folder: bool = False) -> Iterator[Index]:
        """The index, locked before it is opened, so that it is the newest revision.

        Args:
            trust_folder: Open the index even where the collection names another owner.

        Raises:
            IndexMissingError: There is none.
            StoreError: Another process writes to it.
        """
        from cart_qdrant.index.folder import IndexFolder

        folder = IndexFolder(self.index.absolute())
        folder.read()  # an index that is not there is not locked, either
        with folder.lock(), self.open(trust_folder=trust_folder) as index:
            yield index

    @property
    def hint(self) -> str:
        """Options that name this index again, for a suggested command."""
        default = Path(os.environ.get(INDEX_VARIABLE) or DEFAULT_INDEX)
        return "" if self.index == default else f" --index {self.index}"


def resolve(
    context: typer.Context,
    *,
    index: Path | None = None,
    url: str | None = None,
    collection: str | None = None,
    verbose: bool = False,
) -> Target:
    """The target: a command's own options win over those before its name, then the environment."""
    state: State = context.obj
    state.verbose |= verbose
    asked = url or state.url
    if asked is not None:
        from cart_qdrant.storage.address import server_address

        asked = server_address(asked)
    named = index or state.index or _index(os.environ.get(INDEX_VARIABLE) or str(DEFAULT_INDEX))
    return Target(
        index=named,
        url=asked,
        collection=collection or state.collection,
        api_key=os.environ.get(KEY_VARIABLE) or None,
        verbose=state.verbose,
    )


def compute_options(device: Device | None, dtype: Dtype | None) -> ComputeOptions:
    """The options of a command; what is not given is taken from the environment."""
    given = {"device": device, "dtype": dtype}
    return ComputeOptions(**{name: str(value) for name, value in given.items() if value})


def examples(*lines: str) -> str:
    """The epilog of a command's help: examples, one a line."""
    return "\n".join(
        ["[bold]Examples[/bold]", *(f"  [cyan]{escape(line)}[/cyan]" for line in lines)]
    )


def prose(text: str) -> str:
    """A docstring for a terminal of any width: its paragraphs, each on one line."""
    paragraphs = inspect.cleandoc(text).split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def add_command(
    app: typer.Typer,
    command: Callable[..., None],
    epilog: str,
    *,
    name: str | None = None,
    cls: type[TyperCommand] | None = None,
) -> None:
    """Add a command, described by its docstring, to the program."""
    app.command(name=name, cls=cls, help=prose(command.__doc__ or ""), epilog=epilog)(command)


def distinct(values: Sequence[str]) -> list[str]:
    """Values in their order, each once."""
    return list(dict.fromkeys(values))
