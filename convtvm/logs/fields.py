"""What the fields of a tuning record have to be: whoever reads one relies on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any


def check(record: Any) -> None:
    """Raise TypeError for the first field of a TuningRecord that is not what it has to be."""
    for name, (fits, complaint) in _FIELDS.items():
        if not fits(getattr(record, name)):
            raise TypeError(f"{name} {complaint}")
    if bool(record.run_secs) == bool(record.error):
        raise TypeError("expected either run_secs or error")


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def _is_truth(value: Any) -> bool:
    return type(value) is bool


def _is_integer(value: Any) -> bool:
    """Of 64 bits: Python's own have no end, and floats have."""
    return type(value) is int and -(2**63) <= value < 2**63


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < 1e9


def _are_decisions(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_integer, value.values()))


def _are_seconds(value: Any) -> bool:
    return isinstance(value, list) and all(_is_number(s) and s > 0 for s in value)


# What each field has to be, and what is said of one that is not.
_FIELDS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(
        ("workload", "algorithm", "target", "layout", "device", "time"), (_is_text, "is not text")
    ),
    **dict.fromkeys(("threads", "template"), (_is_integer, "is not an integer")),
    "decisions": (_are_decisions, "do not map names to integers"),
    "run_secs": (_are_seconds, "is not a list of positive seconds"),
    **dict.fromkeys(("error", "versions"), (_is_object, "is not an object")),
    **dict.fromkeys(("disturbed", "confirmed"), (_is_truth, "is not true or false")),
    "max_error": (lambda value: value is None or _is_number(value), "is not a positive number"),
    "workspace_bytes": (
        lambda value: value is None or (_is_integer(value) and value >= 0),
        "is not a count",
    ),
}
