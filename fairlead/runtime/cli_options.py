"""What the command lines of several processes do alike: how they log, and where they listen."""

import logging
import sys
from collections.abc import Iterable

from fairlead.errors import SettingsError

_LOG_LEVELS = ("debug", "info", "warning", "error")


def parse_log_level(text: str | None) -> str:
    """The setting as ``logging`` wants it; ``INFO`` where there is none. Raises SettingsError."""
    name = (text or "info").lower()
    if name not in _LOG_LEVELS:
        field = "FAIRLEAD_LOG_LEVEL"
        raise SettingsError(f"{field} is not a level", field=field, hint=f"one of {', '.join(_LOG_LEVELS)}")
    return name.upper()


def configure_stderr_logging(log: logging.Logger, level: str | None, warnings: Iterable[str]) -> None:
    """Begin to log, first these warnings. Raises SettingsError for what is no level."""
    logging.basicConfig(
        level=parse_log_level(level), stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it tells of each question
    for line in warnings:
        log.warning("%s", line)


def parse_address(text: str, flag: str, example: str) -> tuple[str, int]:
    """``HOST:PORT`` or ``[IPv6]:PORT``. Raises SettingsError naming ``flag``, with an ``example``."""
    host, colon, port = text.rpartition(":")
    if not colon or not (port.isascii() and port.isdigit() and len(port) < 6 and int(port) < 65_536):
        raise SettingsError(f"{flag}: HOST:PORT is expected", field=flag, hint=f"for example {example}")
    return host.removeprefix("[").removesuffix("]"), int(port)
