"""Options shared by the command lines of several processes: log level and listening address."""

import logging
import sys
from collections.abc import Iterable

from fairlead.errors import SettingsError

_LOG_LEVELS = ("debug", "info", "warning", "error")


def parse_log_level(text: str | None) -> str:
    """Returns the level name for `logging`; `INFO` for empty text. Raises SettingsError."""
    name = (text or "info").lower()
    if name not in _LOG_LEVELS:
        field = "FAIRLEAD_LOG_LEVEL"
        raise SettingsError(f"{field} is not a level", field=field, hint=f"use one of {', '.join(_LOG_LEVELS)}")
    return name.upper()


def configure_stderr_logging(log: logging.Logger, level: str | None, warnings: Iterable[str]) -> None:
    """Configures logging to standard error and logs `warnings`. Raises SettingsError."""
    logging.basicConfig(
        level=parse_log_level(level), stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it logs every request
    for line in warnings:
        log.warning("%s", line)


def parse_address(text: str, flag: str, example: str) -> tuple[str, int]:
    """Returns host and port of `HOST:PORT` or `[IPv6]:PORT`. Raises SettingsError naming `flag`."""
    host, colon, port = text.rpartition(":")
    if not colon or not (port.isascii() and port.isdigit() and len(port) < 6 and int(port) < 65_536):
        raise SettingsError(f"{flag} must be HOST:PORT", field=flag, hint=f"write it like {example}")
    return host.removeprefix("[").removesuffix("]"), int(port)
