"""One shape for every complaint: which argument, what was expected, what came."""

from __future__ import annotations

from collections.abc import Iterable


def bad(name: str, expected: str, got: object) -> ValueError:
    """A ``ValueError`` that reads ``name: expected ..., got ...``."""
    return ValueError(f"{name}: expected {expected}, got {got}")


def unknown(name: str, got: object, known: Iterable[str]) -> ValueError:
    """A ``ValueError`` for a name that is not in a table; lists the table."""
    return bad(name, "one of " + ", ".join(map(repr, known)), repr(got))
