"""The size of a simulated gateway cluster, and the information that its gateways share."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SharingOptions:
    """The information that simulated gateways have of one another and of the engines.

    - sent: prompts that other gateways routed.
    - loads: in-flight load of other gateways, as expected by now. ``raw_loads``: as last published.
    - hot: one table of hot prefixes for all gateways.
    - pins: the engine that served a session last, for clients that name their session.
    - index: KV events of the engines.
    - perfect: before each choice, what every engine has cached or is about to compute. It replaces
      all other knowledge of caches.
    - round_seconds: interval of publication; ``publish_seconds`` and ``index_seconds``: delays.
    """

    sent: bool = True
    loads: bool = True
    hot: bool = True
    pins: bool = False
    index: bool = False
    raw_loads: bool = False
    perfect: bool = False
    round_seconds: float = 0.05
    publish_seconds: float = 0.05
    index_seconds: float = 0.05


NO_SHARING = SharingOptions(sent=False, loads=False, hot=False)
PERFECT_KNOWLEDGE = SharingOptions(sent=False, loads=True, hot=True, perfect=True)


@dataclass(frozen=True, slots=True)
class GatewayRestart:
    """A restart of one gateway at the arrival of the request with this number."""

    gateway: int
    at_request: int


@dataclass(frozen=True, slots=True)
class ClusterOptions:
    """A cluster of gateways.

    by_session: all requests of a session go to one gateway; otherwise each goes to a random one.
    """

    gateways: int = 1
    sharing: SharingOptions = SharingOptions()
    by_session: bool = False
    restart: GatewayRestart | None = None
