"""What the command lines of several processes check alike: how much they log, and where they listen."""

from fairlead.errors import SettingsError

_LEVELS = ("debug", "info", "warning", "error")


def log_level(text: str | None) -> str:
    """The setting as ``logging`` wants it; ``INFO`` where there is none. Raises SettingsError."""
    name = (text or "info").lower()
    if name not in _LEVELS:
        field = "FAIRLEAD_LOG_LEVEL"
        raise SettingsError(f"{field} is not a level", field=field, hint=f"one of {', '.join(_LEVELS)}")
    return name.upper()


def address(text: str, flag: str, example: str) -> tuple[str, int]:
    """``HOST:PORT`` or ``[IPv6]:PORT``. Raises SettingsError naming ``flag``, with an ``example``."""
    host, colon, port = text.rpartition(":")
    if not colon or not (port.isascii() and port.isdigit() and len(port) < 6 and int(port) < 65_536):
        raise SettingsError(f"{flag}: HOST:PORT is expected", field=flag, hint=f"for example {example}")
    return host.removeprefix("[").removesuffix("]"), int(port)
