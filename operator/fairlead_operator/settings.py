"""The operator's settings, validated and in their units."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from fairlead import units
from fairlead.api.spec.engine import EngineType
from fairlead.audit.log import AuditOptions, parse_audit_options
from fairlead.errors import BadInput, SettingsError
from fairlead.fleet.client_names import parse_client_names
from fairlead.fleet.endpoint_address import parse_endpoint_namespaces
from fairlead.fleet.labels import parse_installation
from fairlead.kube.leader_election import LeaseTiming
from fairlead.names import DNS_LABEL_PATTERN, DNS_SUBDOMAIN_PATTERN
from fairlead.runtime.cli_options import parse_log_level
from fairlead.settings import OperatorSettings
from fairlead_operator.render import AllowedPeer, InstallationDefaults

_IMAGE_TYPES = {engine.label: engine for engine in (EngineType.VLLM, EngineType.SGLANG, EngineType.SIM)}


@dataclass(frozen=True, slots=True)
class HungEngineOptions:
    """Settings of the restarts of engines that hang. Times are in seconds.

    gateways: whose reports count.
    token: of their management ports; None sends none.
    restart_seconds: None: pods are marked and not deleted.
    """

    gateways: AllowedPeer
    token: str | None
    grace_seconds: float
    restart_seconds: float | None


@dataclass(frozen=True, slots=True)
class OperatorOptions:
    """Validated settings. Times are in seconds.

    namespaces: watched namespaces; empty means all.
    client_names: owners of client names that an administrator assigned.
    hung_engines: None: no engine counts as hung.
    """

    namespaces: tuple[str, ...]
    workers: int
    resync_seconds: float
    capacity_grace_seconds: float
    lease_timing: LeaseTiming
    log_level: str
    installation: InstallationDefaults
    client_names: Mapping[str, str] = field(default_factory=dict)
    hung_engines: HungEngineOptions | None = None
    audit: AuditOptions = field(default_factory=AuditOptions)


def parse_options(settings: OperatorSettings) -> OperatorOptions:
    """Returns the options. Raises SettingsError, naming the variable and its valid values."""
    workers = settings.reconcilers or ""
    if not (workers.isascii() and workers.isdecimal() and len(workers) < 4 and 1 <= int(workers) <= 256):
        raise _settings_error(
            "FAIRLEAD_RECONCILERS", f"{workers!r} is not a number from 1 to 256", "leave it out for 8"
        )
    lease = _parse_seconds("FAIRLEAD_LEASE", settings.lease, 3.0)
    secrets = _parse_names("FAIRLEAD_ENGINE_PULL_SECRETS", settings.engine_pull_secrets)
    return OperatorOptions(
        namespaces=_parse_names("FAIRLEAD_WATCH_NAMESPACES", settings.watch_namespaces),
        workers=int(workers),
        resync_seconds=_parse_seconds("FAIRLEAD_RESYNC", settings.resync, 5.0),
        capacity_grace_seconds=_parse_seconds("FAIRLEAD_CAPACITY_GRACE", settings.capacity_grace, 0.0, 24 * 3_600.0),
        lease_timing=LeaseTiming(lease, lease * 2 / 3, lease * 2 / 15),
        log_level=parse_log_level(settings.log_level),
        installation=InstallationDefaults(
            _parse_images(settings.engine_images or ""),
            secrets,
            _parse_peers("FAIRLEAD_GATEWAY_PODS", settings.gateway_pods or ""),
            parse_endpoint_namespaces(settings.endpoint_namespaces or ""),
            parse_installation(settings.installation or ""),
            settings.downloader_image,
        ),
        client_names=parse_client_names(settings.client_names or ""),
        hung_engines=_parse_hung_engines(settings),
        audit=parse_audit_options(settings.audit_log, settings.audit_dir),
    )


def _parse_hung_engines(settings: OperatorSettings) -> HungEngineOptions | None:
    grace_seconds = _parse_seconds("FAIRLEAD_HUNG_GRACE", settings.hung_grace, 10.0)
    restart_seconds = None
    if settings.hung_restart is not None:
        restart_seconds = _parse_seconds("FAIRLEAD_HUNG_RESTART", settings.hung_restart, 0.0)
    gateways = _parse_peers("FAIRLEAD_MANAGEMENT_PODS", settings.management_pods or "")
    if gateways is None:
        return None
    if len(gateways) > 1:
        message = f"{settings.management_pods!r} names pods of several namespaces"
        raise _settings_error("FAIRLEAD_MANAGEMENT_PODS", message, "name the gateways of this installation only")
    return HungEngineOptions(gateways[0], settings.manage_token, grace_seconds, restart_seconds)


def _parse_names(variable: str, text: str | None) -> tuple[str, ...]:
    names = tuple(part for part in re.split(r"[,\s]+", text or "") if part)
    for name in names:
        if not DNS_SUBDOMAIN_PATTERN.fullmatch(name):
            raise _settings_error(variable, f"{name!r} is not a name", "separate names with commas")
    return names


def _parse_images(text: str) -> dict[EngineType, str]:
    images = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        kind, _, image = part.partition("=")
        engine = _IMAGE_TYPES.get(kind)
        if engine is None or not image:
            message = f"{part!r} is not an engine image"
            raise _settings_error(
                "FAIRLEAD_ENGINE_IMAGES", message, "write it like vllm=registry/vllm:tag,sim=registry/sim:tag"
            )
        images[engine] = image
    return images


def _parse_peers(variable: str, text: str) -> tuple[AllowedPeer, ...] | None:
    peers = []
    for part in filter(None, (part.strip() for part in text.split(";"))):
        namespace, _, listed = part.partition("/")
        labels = dict(pair.partition("=")[::2] for pair in listed.split(","))
        if not DNS_LABEL_PATTERN.fullmatch(namespace) or not all(labels) or not all(labels.values()):
            message, hint = (
                f"{part!r} is not a namespace with labels",
                "write it like fairlead/app.kubernetes.io/name=fairlead-gateway",
            )
            raise _settings_error(variable, message, hint)
        peers.append(AllowedPeer(namespace, labels))
    return tuple(peers) or None


def _parse_seconds(name: str, text: str | None, minimum: float, maximum: float = 3_600.0) -> float:
    try:
        seconds = units.parse_duration(text or "")
    except BadInput as error:
        raise _settings_error(name, error.message, "write it like 15s") from error
    if not minimum <= seconds <= maximum:
        raise _settings_error(name, f"{text} is not between {minimum:g}s and {maximum / 3_600:g}h", "leave it out")
    return seconds


def _settings_error(name: str, message: str, hint: str) -> SettingsError:
    return SettingsError(f"{name}: {message}", field=name, hint=hint)
