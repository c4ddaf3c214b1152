"""The parts of an engine, built from its settings: cores, event publishers and metrics."""

import functools
from dataclasses import dataclass, replace
from random import Random

import zmq

from fairlead.engine_profile import EngineProfile
from fairlead.runtime.clock import Clock
from fairlead.runtime.loop_lag import LoopLag
from fairlead_sim.engine.kv_event_codec import AdapterIds
from fairlead_sim.engine.kv_event_publisher import KvEventPublisher
from fairlead_sim.engine.metrics import EngineFacts, EngineMetrics
from fairlead_sim.engine.scheduler import EngineCore, EngineStats
from fairlead_sim.engine.tokenizer import Tokenizer
from fairlead_sim.runtime.settings import EngineSettings

ZmqContext = zmq.Context[zmq.Socket[bytes]]


@dataclass(frozen=True, slots=True)
class EngineResources:
    """The resources that the engines of one process share.

    zmq_context: None: each publisher makes its own.
    """

    clock: Clock
    random: Random
    tokenizer: Tokenizer
    lag: LoopLag | None = None
    zmq_context: ZmqContext | None = None


def build_cores(settings: EngineSettings, profile: EngineProfile) -> list[EngineCore]:
    """Returns a core per data-parallel rank; ``profile`` already has the engine's speed."""
    return [
        EngineCore(
            profile,
            block_tokens=settings.block_tokens,
            scheduling=settings.scheduling,
            events=settings.kv_events.endpoint is not None,
        )
        for _ in range(settings.data_parallel)
    ]


def build_publishers(
    settings: EngineSettings, resources: EngineResources, *, port: int, adapter_id: AdapterIds
) -> list[KvEventPublisher]:
    """Returns a publisher per rank; an empty list without a KV-event endpoint.

    The default topic names the engine's own address.
    """
    events = settings.kv_events
    if events.endpoint is None:
        return []
    topic = f"kv@127.0.0.1:{port}@{settings.served_names[0]}" if events.topic is None else events.topic
    return [
        KvEventPublisher(
            replace(events, topic=topic),
            clock=resources.clock,
            rank=rank,
            adapter_id=adapter_id,
            context=resources.zmq_context,
        )
        for rank in range(settings.data_parallel)
    ]


def build_metrics(settings: EngineSettings, built: list[EngineCore], resources: EngineResources) -> EngineMetrics:
    """Returns the metrics page over all ranks."""
    tokens = built[0].max_sequence_tokens
    facts = EngineFacts(
        settings.served_names[0],
        settings.max_model_len,
        {
            "block_size": settings.block_tokens,
            "effective_attention_block_size": settings.block_tokens,
            "num_gpu_blocks": built[0].pool.blocks,
            "kv_cache_size_tokens": tokens,
            "kv_cache_max_concurrency": round(tokens / settings.max_model_len, 2),
        },
        settings.max_adapters,
    )
    stats = [functools.partial(_stats, core) for core in built]
    return EngineMetrics(facts, stats, clock=resources.clock, lag=resources.lag)


def shift_event_ports(settings: EngineSettings, offset: int) -> EngineSettings:
    """Returns the settings of engine number ``offset`` in one process, with fixed event ports moved
    up.
    """
    events = settings.kv_events
    ports = offset * settings.data_parallel
    shifted = replace(
        events, endpoint=_shift_port(events.endpoint, ports), replay_endpoint=_shift_port(events.replay_endpoint, ports)
    )
    return replace(settings, kv_events=shifted)


def _shift_port(endpoint: str | None, ports: int) -> str | None:
    if endpoint is None or endpoint.endswith(":0"):
        return endpoint
    base, colon, port = endpoint.rpartition(":")
    return f"{base}{colon}{int(port) + ports}" if port.isdecimal() else endpoint


def _stats(core: EngineCore) -> EngineStats:
    return core.stats
