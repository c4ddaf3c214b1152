"""Numbers as people read them; a dash for what is not known, never a zero."""

from fairlead.units import format_duration

UNKNOWN = "–"


def format_seconds(seconds: float | None) -> str:
    """``210ms``, ``1.25s``."""
    if seconds is None:
        return UNKNOWN
    return format_duration(seconds) if seconds >= 1e-4 else "0s"


def format_share(value: float | None) -> str:
    """``0.43`` → ``43 %``; from 99 % on with one more digit, and never 100 % of what is not all: ``0.9997`` → ``99.9 %``"""
    if value is None:
        return UNKNOWN
    return f"{min(100 * value, 99.9):.1f} %".replace(".0 %", " %") if 0.99 < value < 1.0 else f"{100 * value:.0f} %"


def format_count(value: float | None) -> str:
    """``12345`` → ``12.3k``"""
    if value is None:
        return UNKNOWN
    for limit, divisor, unit in ((1e3, 1, ""), (1e6, 1e3, "k"), (1e9, 1e6, "M")):
        if abs(value) < limit:
            shown = f"{value / divisor:.1f}" if divisor > 1 else f"{value:.0f}"
            return shown.removesuffix(".0") + unit
    return f"{value:.3g}"


def format_rate(value: float | None) -> str:
    """``6.93`` → ``6.9/s``"""
    return UNKNOWN if value is None else f"{value:.1f}/s"


def pluralize(number: int, noun: str) -> str:
    """``1 engine``, ``8 engines``"""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
