"""Numbers as text for people; a dash for an unknown value, never a zero."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fairlead.units import format_duration

UNKNOWN = "–"


def known(value: float | None, show: Callable[[float], str]) -> str:
    """Returns a value as text, and a dash for None."""
    return UNKNOWN if value is None else show(value)


def format_seconds(seconds: float | None) -> str:
    return known(seconds, lambda value: format_duration(value) if value >= 1e-4 else "0s")


def format_share(value: float | None) -> str:
    """Returns ``43 %`` for ``0.43``; above 99 % with one more digit, and never rounded to 100 %."""
    if value is None:
        return UNKNOWN
    return f"{min(100 * value, 99.9):.1f} %".replace(".0 %", " %") if 0.99 < value < 1.0 else f"{100 * value:.0f} %"


def format_count(value: float | None) -> str:
    """Returns ``12.3k`` for ``12345``."""
    if value is None:
        return UNKNOWN
    for limit, divisor, unit in ((1e3, 1, ""), (1e6, 1e3, "k"), (1e9, 1e6, "M")):
        if abs(value) < limit:
            shown = f"{value / divisor:.1f}" if divisor > 1 else f"{value:.0f}"
            return shown.removesuffix(".0") + unit
    return f"{value:.3g}"


def format_rate(value: float | None) -> str:
    return known(value, "{:.1f}/s".format)


def align_columns(rows: Sequence[Sequence[str]], gap: str = "   ") -> str:
    """Returns a table like kubectl's, with columns as wide as needed."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        gap.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def printable(text: str) -> str:
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


def pluralize(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


@dataclass(frozen=True, slots=True)
class Advice:
    """The next thing to do, and whether something is wrong."""

    is_problem: bool
    text: str


def short_instance_name(instance_id: str) -> str:
    """Returns ``main-3`` for ``main-3/40123/0``, and ``127.0.0.1:9001`` for an id made from an
    address.

    A rank other than 0 stays, because it distinguishes instances of one address.
    """
    name, _, rest = instance_id.partition("/")
    port, _, rank = rest.rpartition("/")
    if port and (name == "localhost" or "." in name or ":" in name):
        name = f"[{name}]:{port}" if ":" in name else f"{name}:{port}"
    return name if rank in ("", "0") else f"{name}/{rank}"
