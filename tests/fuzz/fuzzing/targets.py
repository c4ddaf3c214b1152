"""All targets by name."""

from fuzzing.address_target import ADDRESS
from fuzzing.body_check_target import BODY_CHECK
from fuzzing.chunked_target import CHUNKED
from fuzzing.engine_target import ENGINE
from fuzzing.head_target import HEAD
from fuzzing.hops_target import HOPS
from fuzzing.kv_events_target import KV_EVENTS
from fuzzing.named_events_target import MESSAGES_STREAM, RESPONSES_STREAM
from fuzzing.policy_target import POLICY
from fuzzing.publisher_target import PUBLISHER
from fuzzing.response_ids_target import RESPONSE_IDS
from fuzzing.splice_target import SPLICE
from fuzzing.sse_target import SSE
from fuzzing.target import Target
from fuzzing.upstream_target import UPSTREAM
from fuzzing.volatile_text_target import VOLATILE_TEXT

TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        *(SPLICE, HEAD, SSE, ENGINE, UPSTREAM, KV_EVENTS),
        *(MESSAGES_STREAM, RESPONSES_STREAM, RESPONSE_IDS, VOLATILE_TEXT),
        *(POLICY, BODY_CHECK, HOPS, CHUNKED, ADDRESS, PUBLISHER),
    )
}
