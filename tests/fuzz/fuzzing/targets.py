"""All targets by name."""

from fuzzing.engine_target import ENGINE
from fuzzing.head_target import HEAD
from fuzzing.kv_events_target import KV_EVENTS
from fuzzing.splice_target import SPLICE
from fuzzing.sse_target import SSE
from fuzzing.target import Target
from fuzzing.upstream_target import UPSTREAM

TARGETS: dict[str, Target] = {target.name: target for target in (SPLICE, HEAD, SSE, ENGINE, UPSTREAM, KV_EVENTS)}
