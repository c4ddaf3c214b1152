"""Parses and formats durations, sizes, quantities, percentages and amounts of money.

Files, the API and messages use strings; all other code uses numbers.
"""

import math
import re
from decimal import Decimal
from typing import Final

from fairlead.errors import BadInput

_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)(us|ms|s|m|h|d)")
_UNIT_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}

DURATION_PATTERN = r"^(\d+(\.\d+)?(us|ms|s|m|h|d))+$"
"""The grammar of durations as a regular expression, for schemas."""

SIZE_PATTERN = r"^[1-9][0-9]{0,8}(\.[0-9]{1,3})?(Mi|Gi|Ti)$"
"""Sizes in powers of two, as Kubernetes writes them."""
_SIZE_UNITS = {"Mi": 2**20, "Gi": 2**30, "Ti": 2**40}

NANO_USD_PER_USD: Final = 1_000_000_000
_NANO_USD_PER_CENT: Final = 10_000_000
_NANO_USD_PER_MICRO_USD: Final = 1_000
_NANO_USD_PER_TOKEN: Final = 1_000
"""The price of a token at one dollar per million tokens, in billionths of a dollar."""
USD_PATTERN = r"^[0-9]{1,9}(\.[0-9]{1,6})?$"
"""Amounts of US dollars."""
TOKEN_PRICE_PATTERN = r"^[0-9]{1,6}(\.[0-9]{1,3}0*)?$"
"""US dollars per million tokens, in steps of 0.001: a token costs whole billionths of a dollar."""

_QUANTITY_SUFFIXES = {"n": Decimal("1e-9"), "u": Decimal("1e-6"), "m": Decimal("1e-3"), "": Decimal(1)}
QUANTITY_PATTERN = r"^[0-9]{1,12}(\.[0-9]{1,24})?([num]|[eE][+-]?[0-9]{1,3})?$"
"""Numbers as Kubernetes writes quantities: a decimal, and n, u or m behind it, or an exponent."""

_RESOURCE_SUFFIXES = (
    {"n": 1e-9, "u": 1e-6, "m": 1e-3, "": 1.0, "k": 1e3}
    | {letter: 1e3**power for power, letter in enumerate("MGTPE", 2)}
    | {f"{letter}i": 1024.0**power for power, letter in enumerate("KMGTPE", 1)}
)

PERCENTAGE_PATTERN = r"^(100(\.0{1,6})?|[0-9]{1,2}(\.[0-9]{1,6})?)%$"
"""A share as a percentage, at most 100%."""


def parse_duration(text: str, *, field: str = "duration") -> float:
    """Returns the seconds of a duration: `"1m30s"` → `90.0`. Raises BadInput naming `field`."""
    total, position = 0.0, 0
    for match in _DURATION_PART.finditer(text):
        if match.start() != position:
            break
        total += float(match[1]) * _UNIT_SECONDS[match[2]]
        position = match.end()
    if not text or position != len(text):
        raise BadInput(f"{text!r} is not a duration", field=field, hint="write it like 800ms, 2s or 1m30s")
    return total


def format_duration(value: float) -> str:
    """Returns seconds as rounded text for people: `0.0415` → `"41.5ms"`, `90` → `"1m30s"`."""
    if value < 0:
        return "-" + format_duration(-value)
    if value < 0.9995e-3:  # what rounds to 1,000 has the next unit
        return f"{value * 1e6:.3g}us"
    if value < 0.9995:
        return f"{value * 1e3:.3g}ms"
    if value < 59.95:
        return f"{value:.3g}s"
    if not value < math.inf:
        return "unknown"
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return "".join(f"{n}{u}" for n, u in ((hours, "h"), (minutes, "m"), (rest, "s")) if n)


def format_exact_duration(value: float) -> str:
    return f"{Decimal(repr(float(value))):f}s"


def parse_size(text: str, *, field: str = "size") -> int:
    """Returns the bytes of a size: `"1.5Gi"` → `1610612736`. Raises BadInput naming `field`."""
    if not re.fullmatch(SIZE_PATTERN.strip("^$"), text):
        raise BadInput(f"{text!r} is not a size", field=field, hint="write it like 512Mi, 64Gi or 2Ti")
    return int(Decimal(text[:-2]) * _SIZE_UNITS[text[-2:]])


def parse_usd(text: str, *, field: str = "amount") -> int:
    """Returns an amount in billionths of a US dollar: `"2.50"` → `2500000000`. Raises BadInput
    naming `field`.
    """
    if not re.fullmatch(USD_PATTERN.strip("^$"), text):
        raise BadInput(f"{text!r} is not an amount", field=field, hint='write it as text without a sign, like "2.50"')
    return int(Decimal(text) * NANO_USD_PER_USD)


def format_usd(nano_usd: int) -> str:
    """Returns billionths of a US dollar as rounded dollars: `2500000000` → `"2.50"`.

    Below ten cents, what is no whole cent has six decimals. Below a millionth of a dollar, it has
    as many as it takes.
    """
    amount = abs(nano_usd)
    if amount >= NANO_USD_PER_USD // 10 or amount % _NANO_USD_PER_CENT == 0:
        return f"{Decimal(nano_usd) / NANO_USD_PER_USD:.2f}"
    if amount < _NANO_USD_PER_MICRO_USD:
        return format_exact_usd(nano_usd)
    return f"{Decimal(nano_usd) / NANO_USD_PER_USD:.6f}"


def format_exact_usd(nano_usd: int) -> str:
    return f"{(Decimal(nano_usd) / NANO_USD_PER_USD).normalize():f}"


def parse_token_price(text: str, *, field: str = "price") -> int:
    """Returns the price of a token in billionths of a US dollar: `"0.40"` per million → `400`.

    Raises BadInput naming `field`, also for a price finer than 0.001 per million tokens.
    """
    if re.fullmatch(TOKEN_PRICE_PATTERN.strip("^$"), text):
        return int(Decimal(text) * _NANO_USD_PER_TOKEN)
    if re.fullmatch(r"[0-9]{1,6}\.[0-9]+", text):
        raise BadInput(
            f"{text!r} is finer than 0.001 US dollars per million tokens", field=field, hint="round it to 0.001"
        )
    hint = 'write US dollars per million tokens as text, like "0.40"; at most 999999'
    raise BadInput(f"{text!r} is not a price", field=field, hint=hint)


def format_token_price(nano_usd: int) -> str:
    """Returns the price of a token as US dollars per million tokens: `400` → `"0.4"`."""
    return f"{(Decimal(nano_usd) / _NANO_USD_PER_TOKEN).normalize():f}"


def parse_quantity(value: int | str, *, field: str = "quantity") -> float:
    """Returns the number of a quantity: `"36u"` and `"3.6e-05"` give `3.6e-05`.

    Raises BadInput naming `field`. The number is computed in decimals, so that each notation gives
    the same float.
    """
    if isinstance(value, int):
        return float(value)
    if not re.fullmatch(QUANTITY_PATTERN.strip("^$"), value):
        raise BadInput(f"{value!r} is not a quantity", field=field, hint='write it like "36u", "1.5m" or "3.6e-05"')
    suffix = value[-1] if value[-1] in "num" else ""
    return float(Decimal(value.removesuffix(suffix)) * _QUANTITY_SUFFIXES[suffix])


def format_quantity(value: float) -> int | str:
    """Returns a number as a quantity that reads back to exactly `value`: `3.6e-05` → `"36u"`."""
    number = Decimal(repr(float(value)))
    if number == number.to_integral_value():
        return int(number)
    fitting = [suffix for suffix, unit in _QUANTITY_SUFFIXES.items() if number >= unit]
    suffix = fitting[-1] if fitting else "n"
    return f"{(number / _QUANTITY_SUFFIXES[suffix]).normalize():f}{suffix}"


def parse_resource(text: object) -> float | None:
    """Returns an amount of a resource (`500m`, `4Gi`, `1e3`) as a number; None if invalid."""
    match = re.fullmatch(r"([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)([A-Za-z]*)", str(text))
    if match is None or match[2] not in _RESOURCE_SUFFIXES:
        return None
    return float(match[1]) * _RESOURCE_SUFFIXES[match[2]]


def parse_percentage(text: str, *, field: str = "percentage") -> float:
    """Returns the share of a percentage: `"99.9%"` → `0.999`. Raises BadInput naming `field`."""
    if not re.fullmatch(PERCENTAGE_PATTERN.strip("^$"), text):
        raise BadInput(f"{text!r} is not a percentage", field=field, hint='write it like "95%" or "99.9%"')
    return float(Decimal(text[:-1]) / 100)


def format_percentage(share: float) -> str:
    return f"{(Decimal(repr(float(share))) * 100).normalize():f}%"
