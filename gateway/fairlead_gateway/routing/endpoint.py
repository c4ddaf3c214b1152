"""The router's record of a ready instance."""

from fairlead.engine_profile import EngineProfile
from fairlead.fleet.model import KvPullSource
from fairlead_gateway.routing.load.inflight import EndpointLoad


class Endpoint:
    """A ready instance with what decisions need.

    - full_step_seconds: prefill time of a full step.
    - cache_bit: bits of the instance in prefix matches, from all sources.
    - index_bit: the bit for what the KV-cache index reports; 0 if it reports nothing.
    """

    __slots__ = ("cache_bit", "full_step_seconds", "id", "index_bit", "kv_tokens", "load", "profile", "pull")

    def __init__(
        self,
        id: str,
        profile: EngineProfile,
        load: EndpointLoad,
        cache_bit: int,
        index_bit: int,
        pull: KvPullSource | None,
    ) -> None:
        self.pull = pull
        self.id = id
        self.profile = profile
        self.kv_tokens = profile.kv_tokens
        self.full_step_seconds: float = profile.prefill_time(profile.step_tokens)
        self.load = load
        self.cache_bit = cache_bit | index_bit
        self.index_bit = index_bit
