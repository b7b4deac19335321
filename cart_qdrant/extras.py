"""Optional dependencies: which extra installs a package, said where the package is missing."""

from __future__ import annotations

from importlib.util import find_spec

from cart_qdrant.errors import MissingExtraError


def require(extra: str, *modules: str) -> None:
    """Check that the packages of an extra are installed; nothing is imported.

    Args:
        extra: Extra of `cart-qdrant` that installs them, such as `media`.
        modules: Top-level import names, such as `av` and `PIL`.

    Raises:
        MissingExtraError: A package is not installed; the remedy is the exact `pip install`.
    """
    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise MissingExtraError(
            f"{' and '.join(missing)} {verb} not installed, but needed here.", install(extra)
        )


def install(extra: str) -> str:
    """The command that installs an extra."""
    return f'pip install "cart-qdrant[{extra}]"'
