"""The ZMQ endpoints of an engine's KV events, from the fleet or from the engine's response. Pure.

``GET /kv_event_sources`` of vLLM returns, for each data-parallel rank, its configuration, such as
``tcp://*:5557``, or the port that it chose. Only the port is used. The host is the one of the
instance's URL, so that no engine can redirect the indexer. An endpoint with another host means that
the engine connects to it instead of listening.
"""

import ipaddress
from urllib.parse import urlsplit

import msgspec

from fairlead.errors import BadInput
from fairlead.fleet.model import Instance

DEFAULT_BUFFER = 10_000
"""The batches that vLLM keeps for replays by default."""
_MAX_BUFFER = 1_000_000
_MAX_PORT_DIGITS = 5


class EventEndpoints(msgspec.Struct, frozen=True):
    """ZMQ addresses of one engine and rank.

    events: where the engine publishes.
    replay: where it replays batches; None when nothing can be replayed.
    buffer: the number of batches that it keeps for replays.
    """

    events: str
    replay: str | None = None
    buffer: int = DEFAULT_BUFFER


class _RankSource(msgspec.Struct):
    enable_kv_cache_events: bool | None = None
    publisher: str | None = None
    endpoint: str | None = None
    replay_endpoint: str | None = None
    buffer_steps: int | None = None


_SOURCES_DECODER = msgspec.json.Decoder(dict[str, _RankSource])


def endpoints_from_fleet(instance: Instance) -> EventEndpoints | None:
    """Returns the endpoints that the fleet states for an instance; None when it states none."""
    return EventEndpoints(instance.kv_events, instance.kv_replay) if instance.kv_events is not None else None


def endpoints_from_answer(answer: bytes, instance: Instance, address: str | None = None) -> EventEndpoints:
    """Returns the endpoints of the instance's rank in a response to ``/kv_event_sources``.

    address: connect to it instead of the host of the instance's URL.
    Raises BadInput when the engine publishes no events that can be read.
    """
    try:
        ranks = _SOURCES_DECODER.decode(answer)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise BadInput("the engine's /kv_event_sources response cannot be read", field="kv_event_sources") from None
    rank = str(instance.dp_rank or 0)
    found = ranks.get(rank)
    if found is None or not found.enable_kv_cache_events or found.endpoint is None:
        raise BadInput(
            f"the engine publishes no KV events{f' of rank {rank}' if instance.dp_rank is not None else ''}",
            field="kv_event_sources",
            hint="start the engine with KV events, for vLLM --kv-events-config",
        )
    if found.publisher not in (None, "zmq"):
        raise BadInput(
            f"the engine publishes KV events with {found.publisher[:32]!r}; only zmq is supported",
            field="kv_event_sources",
        )
    host = urlsplit(instance.url).hostname or ""
    buffer = found.buffer_steps if found.buffer_steps and found.buffer_steps > 0 else DEFAULT_BUFFER
    hosts = (host, address or host)
    replay = None if found.replay_endpoint is None else _reachable_address(found.replay_endpoint, *hosts)
    events = _reachable_address(found.endpoint, *hosts)
    if events is None:
        raise BadInput(
            f"the engine connects to {found.endpoint[:64]!r}, and an indexer does not listen for engines: "
            "let it publish at tcp://*:PORT",
            field="kv_event_sources",
        )
    return EventEndpoints(events, replay, min(buffer, _MAX_BUFFER))


def _reachable_address(endpoint: str, host: str, address: str) -> str | None:
    """Returns the address at which to reach an engine's endpoint; None if the engine connects to it
    instead of binding it. Raises BadInput if it is not a TCP address.

    host: of the instance's URL, which the engine may name. address: to connect to.
    """
    base, _, digits = endpoint.rpartition(":")
    is_number = digits.isascii() and digits.isdecimal() and len(digits) <= _MAX_PORT_DIGITS
    port = int(digits) if is_number else 0
    if not base.startswith("tcp://") or not 0 < port < 65_536:
        raise BadInput(f"the engine's endpoint {endpoint[:64]!r} is not a TCP address", field="kv_event_sources")
    named = base.removeprefix("tcp://").strip("[]")
    if named not in ("*", host) and not _is_this_machine(named):
        return None
    return f"tcp://[{address}]:{port}" if ":" in address else f"tcp://{address}:{port}"


def _is_this_machine(named: str) -> bool:
    """Returns whether a host means the engine's own machine: unspecified or loopback."""
    if named == "localhost":
        return True
    try:
        found = ipaddress.ip_address(named)
    except ValueError:
        return False
    return found.is_unspecified or found.is_loopback
