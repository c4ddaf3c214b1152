"""The settings of access log and tracing, checked."""

from dataclasses import dataclass
from pathlib import Path

from fairlead.errors import SettingsError
from fairlead.fleet.engine_url import is_http_url
from fairlead.settings import GatewaySettings

_TRUE_WORDS, _FALSE_WORDS = ("1", "true", "yes", "on"), ("0", "false", "no", "off")


@dataclass(frozen=True, slots=True)
class ObservabilitySettings:
    """The settings of access log and traces.

    access_log: a path, `-` for standard output, `1` for standard error; None: no log.
    trace_endpoint: the collector's base URL; None: no traces.
    trace_share: share of requests to sample, 0 to 1.
    """

    access_log: str | None = None
    log_clients: bool = True
    trace_endpoint: str | None = None
    trace_headers: tuple[tuple[str, str], ...] = ()
    trace_share: float = 0.0


def parse_observability_settings(settings: GatewaySettings) -> ObservabilitySettings:
    """Returns the checked settings. Raises SettingsError."""
    endpoint = _check_endpoint(settings.trace_endpoint) if settings.trace_endpoint else None
    share = _sample_share(settings.trace_sample)
    if share > 0 and endpoint is None:
        raise SettingsError(
            "FAIRLEAD_TRACE_SAMPLE is set and there is nowhere to send spans to",
            field="FAIRLEAD_TRACE_ENDPOINT",
            hint="set FAIRLEAD_TRACE_ENDPOINT to the collector's address, such as http://otel-collector:4318",
        )
    return ObservabilitySettings(
        access_log=_access_log_target(settings.access_log),
        log_clients=_parse_bool(settings.access_log_clients, "FAIRLEAD_ACCESS_LOG_CLIENTS"),
        trace_endpoint=endpoint,
        trace_headers=tuple(_parse_headers(settings.trace_headers).items()),
        trace_share=share,
    )


def _access_log_target(text: str | None) -> str | None:
    """Returns a path, `-` or `1`; None if the access log is off.

    Raises SettingsError if the folder of the path does not exist. Later failures only lose lines.
    """
    if text is None or text.lower() in _FALSE_WORDS:
        return None
    if text.lower() in _TRUE_WORDS:
        return "1"
    if text != "-" and not Path(text).absolute().parent.is_dir():
        raise SettingsError(
            "FAIRLEAD_ACCESS_LOG lies in a folder that does not exist",
            field="FAIRLEAD_ACCESS_LOG",
            hint="create the folder, or write - for standard output, 1 for standard error",
        )
    return text


def _sample_share(text: str | None) -> float:
    try:
        share = float(text or "0")
    except ValueError:
        share = -1.0
    if not 0.0 <= share <= 1.0:
        raise SettingsError(
            "FAIRLEAD_TRACE_SAMPLE is not a number from 0 to 1",
            field="FAIRLEAD_TRACE_SAMPLE",
            hint="0.01 records one request in a hundred",
        )
    return share


def _parse_bool(text: str | None, field: str) -> bool:
    if text is None or text.lower() in _TRUE_WORDS:
        return True
    if text.lower() in _FALSE_WORDS:
        return False
    raise SettingsError(f"{field} is neither 1 nor 0", field=field, hint="write 1 or 0")


def _check_endpoint(text: str) -> str:
    if not is_http_url(text):
        raise SettingsError(
            "FAIRLEAD_TRACE_ENDPOINT is not a URL of a collector",
            field="FAIRLEAD_TRACE_ENDPOINT",
            hint="write it like http://otel-collector:4318; /v1/traces is added",
        )
    return text


def _parse_headers(text: str | None) -> dict[str, str]:
    """Parses `name=value,name=value`. Raises SettingsError, which repeats no value."""
    headers: dict[str, str] = {}
    for part in (text or "").split(","):
        name, equals, value = part.strip().partition("=")
        if not part.strip():
            continue
        if not equals or not name.replace("-", "").isalnum() or not value.isascii() or not value.isprintable():
            raise SettingsError(
                "FAIRLEAD_TRACE_HEADERS is malformed",
                field="FAIRLEAD_TRACE_HEADERS",
                hint="write name=value, several with commas between them",
            )
        headers[name.strip().lower()] = value.strip()
    return headers
