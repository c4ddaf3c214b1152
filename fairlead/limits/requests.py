"""Limits of client requests, from the client's connection to the response of the engine."""

from dataclasses import dataclass

from fairlead.limits.limit_field import limit


@dataclass(frozen=True)
class HttpLimits:
    """Limits of client connections and HTTP messages."""

    request_line_bytes: int = limit(8_192, "a longer URL is an attack or a mistake; 414")
    header_bytes: int = limit(32_768, "all request headers together; engines had CVEs for unlimited ones; 431")
    headers_count: int = limit(100, "header fields of one request; 431")
    body_bytes: int = limit(
        32 * 1024 * 1024,
        "a prompt of about 8 million tokens or a handful of images, unless FAIRLEAD_BODY_SIZE says otherwise; 413",
    )
    body_wire_factor: int = limit(8, "bytes on the wire per body byte when chunked: 1-byte chunks are an attack")
    chunk_extension_bytes: int = limit(256, "the extension of one chunk, which is read and dropped; 413")
    trailer_bytes: int = limit(8_192, "trailers are read and dropped; more are refused")
    header_timeout_seconds: float = limit(5.0, "slowloris: from the first byte of a request head to its end")
    body_idle_seconds: float = limit(30.0, "a body without a byte for this long ends the connection with 408")
    body_seconds: float = limit(300.0, "from the end of a request's head to the end of its body; 408")
    keepalive_idle_seconds: float = limit(
        620.0,
        "an idle client connection is closed, unless FAIRLEAD_CLIENT_IDLE_TIMEOUT says otherwise; Google's load balancers keep 600 s",
    )
    connections: int = limit(
        20_000,
        "client connections of one worker; for more, idle ones are closed, or the next gets 503. Fewer where the limit "
        "of open files, less `instance_descriptors` for each instance and `reserved_descriptors`, is lower; the log and "
        "`/readyz` say so where less than 95 % is left",
    )
    caller_connections_share: float = limit(
        0.9,
        "of them, whose last request had the key of one caller; then its requests get 503, and others keep the rest",
    )
    reserved_descriptors: int = limit(256, "descriptors of a worker for files, logs and sockets of its own")
    min_connections: int = limit(64, "client connections of one worker, however few descriptors it has")
    tls_handshakes: int = limit(
        2_048, "TLS handshakes of one worker at a time, which count as connections; then the oldest is reset"
    )
    write_high_bytes: int = limit(256 * 1024, "unsent bytes to a slow client before its engine is paused")
    unsent_bytes: int = limit(
        256 * 1024 * 1024,
        "unsent bytes of one worker, all connections together; then those of the caller with most are closed",
    )
    unsent_check_seconds: float = limit(
        1.0,
        "interval at which both are checked; while memory is short, a quarter of the unsent bytes is freed each time",
    )
    bodies_bytes: int = limit(
        512 * 1024 * 1024,
        "requests of one worker with their heads, all together; then those over 64 KiB get 503, an eighth above it all",
    )
    caller_bodies_share: float = limit(
        0.5, "of `bodies_bytes`, for requests over 16 KiB of one caller; the others keep the rest"
    )
    unparsed_bytes: int = limit(
        64 * 1024 * 1024, "incomplete heads and bytes read ahead of one worker, all together; then they get 503"
    )
    caller_large_bodies_bytes: int = limit(
        64 * 1024 * 1024,
        "bodies over 256 KiB of one caller that wait to be checked in a worker, more with FAIRLEAD_BODY_SIZE; the next gets 429",
    )
    body_check_seconds: float = limit(
        30.0, "the checking process takes this long for a body over 256 KiB: 503, and it is replaced"
    )
    drain_seconds: float = limit(
        600.0, "requests in flight at SIGTERM may finish for this long, unless FAIRLEAD_DRAIN_TIMEOUT says otherwise"
    )
    drain_idle_seconds: float = limit(5.0, "an idle client connection of a gateway that drains is closed")
    tenants: int = limit(20_000, "tenants of a gateway; 10,000 with 50,000 keys take 20 MB of each worker")


@dataclass(frozen=True)
class RequestLimits:
    """Limits of the content of one request."""

    json_depth: int = limit(128, "nesting of a request body; no client needs more, and parsers differ beyond")
    json_containers: int = limit(200_000, "arrays and objects in one request body; a chat has a few per message")
    json_values: int = limit(
        2_097_152,
        "commas in one request body: each value costs memory, and as text each is a token; no context has more",
    )
    max_tokens: int = limit(16_777_216, "max_tokens and max_completion_tokens; the engine's context is the real bound")
    stop_bytes: int = limit(65_536, "all stop strings of one request; engines search each after every token")
    name_bytes: int = limit(
        524_288, "model, user, cache_salt and other names in a body over 256 KiB; a worker decodes them all at once"
    )


@dataclass(frozen=True)
class IdempotencyLimits:
    """Limits of answers that are kept for requests sent again."""

    idempotency_key_bytes: int = limit(255, "an `Idempotency-Key`; SDKs send a prefix and a UUID; 400")
    idempotency_window_seconds: float = limit(
        600.0, "an answer is kept this long after its end; SDKs send a request again within seconds, twice"
    )
    idempotency_unread_seconds: float = limit(
        10.0, "a request with a key runs on for this long after its last client left; SDKs wait 8 s at most"
    )
    idempotency_answer_bytes: int = limit(
        8 * 1024 * 1024, "an answer that is kept: a stream of about 30,000 tokens; a longer one is passed on only"
    )
    idempotency_bytes: int = limit(
        64 * 1024 * 1024, "kept answers of one worker, all together; then those of the caller with most go first"
    )
    idempotency_owner_seconds: float = limit(
        900.0, "a worker waits this long for the first byte from the worker that owns a key; 503"
    )


@dataclass(frozen=True)
class QueueLimits:
    """Limits of requests that are queued in the gateway."""

    queued_requests: int = limit(
        2_000, "queued requests of one model in a worker; beyond, the caller that has most is refused"
    )
    queued_bytes: int = limit(
        256 * 1024 * 1024,
        "bodies of a model's queued requests in a worker; beyond, the caller that has most is refused",
    )
    queue_seconds: float = limit(60.0, "a request queued for this long gets 503: clients give up about then")
    queue_starting_seconds: float = limit(
        30.0, "a request waits this long for the first instance of a model that is starting, then 503"
    )
    queue_waking_seconds: float = limit(
        600.0, "the same for a model that scales from zero: a node may have to be added first"
    )
    session_pins: int = limit(
        65_536, "sessions of one model whose last instance and prompts are remembered; the oldest are dropped"
    )


@dataclass(frozen=True)
class UpstreamLimits:
    """Limits of connections, attempts and responses of engines."""

    upstream_idle_seconds: float = limit(4.0, "idle engine connections close before uvicorn's 5 s keep-alive does")
    connect_seconds: float = limit(2.0, "TCP connect to an engine; then the request is tried elsewhere")
    first_token_seconds: float = limit(600.0, "an engine without a byte for this long is given up")
    stream_idle_seconds: float = limit(
        120.0, "a stream ends whose client reads nothing for this long, or whose engine hangs and has no substitute"
    )
    stream_silence_seconds: float = limit(
        600.0,
        "a stream without a byte of an engine that lives ends with an error event, unless FAIRLEAD_STREAM_SILENCE_TIMEOUT says "
        "otherwise: parsers hold long tool calls, and SDKs wait this long",
    )
    stream_hang_seconds: float = limit(
        5.0, "an engine that counts no work hangs after this long, or 20 times the usual gap of a stream"
    )
    stream_end_seconds: float = limit(2.0, "from the last event of a stream to the end of the engine's response")
    unresponsive_seconds: float = limit(
        5.0, "an engine that sends no byte to any request for this long gets a connectivity probe, or is given up"
    )
    response_head_bytes: int = limit(65_536, "an engine's response head; a longer one means a broken engine")
    response_seconds: float = limit(
        600.0, "a plain response, from the request's last byte; then 504. Streams have none"
    )
    shadow_copies: int = limit(16, "copies for shadows of routes in flight in a worker; the next are not made")
    shadow_pairs: int = limit(256, "of these and of ended ones, those whose originals still run; the next are not made")
    response_buffer_bytes: int = limit(
        1024 * 1024, "of a plain response, buffered until it is complete so that it can be retried"
    )
    buffered_responses_bytes: int = limit(
        128 * 1024 * 1024,
        "the same of all responses of a worker over 16 KiB, and of long events; half for one namespace. "
        "Then it is passed on, or a stream ends",
    )
    sse_event_bytes: int = limit(32 * 1024 * 1024, "one event of an engine's stream, which may hold images")
    resumable_bytes: int = limit(1024 * 1024, "of a stream, buffered so that another engine can continue it")
    stream_head_seconds: float = limit(
        10.0,
        "a stream without its first event gets its head after this long, unless FAIRLEAD_STREAM_HEAD_TIMEOUT says otherwise; "
        "then errors are events",
    )
    keep_alive_seconds: float = limit(
        15.0,
        "a stream silent for this long gets a comment, so that no proxy closes it, unless FAIRLEAD_STREAM_COMMENT_INTERVAL says "
        "otherwise",
    )
    adapter_load_seconds: float = limit(60.0, "a load of a LoRA adapter; then another engine is tried")
    adapter_wait_seconds: float = limit(
        10.0, "the wait for a slot, while all adapters of an engine have requests; then another engine is tried"
    )
    max_attempts: int = limit(
        3, "engines tried for one request before the first byte, unless `routing.maxAttempts` of its model says another"
    )
    retry_share: float = limit(
        0.2, "retries per request over the last 10 s, of one caller and of all; 10 more of all, at least 10 of a caller"
    )
    breaker_consecutive_faults: int = limit(3, "consecutive faults of one engine until it is ejected; load is no fault")
    breaker_fault_sources: int = limit(
        2, "callers, or bodies of the only caller, whose faults eject an engine; one request may fail everywhere"
    )
    ejection_seconds: float = limit(5.0, "first ejection; doubles each time, with a jitter of a fifth")
    ejection_probe_after_seconds: float = limit(
        10.0, "an ejected engine without an answer for this long gets one-token probes of the gateway, if it may hang"
    )
    ejection_probe_interval_seconds: float = limit(15.0, "from one such probe of a worker to its next, per engine")
    ejection_probe_seconds: float = limit(15.0, "the answer to such a probe; then the probe has failed")
    warm_up_seconds: float = limit(10.0, "from the successful probe until an instance gets its full share again")
    first_token_min_seconds: float = limit(15.0, "an engine silent to every request for this long may count as stalled")
    first_token_factor: float = limit(10.0, "it counts as stalled after this many times the predicted time")
    quarantine_seconds: float = limit(
        600.0, "a poison request is refused for this long, since an engine takes minutes to restart"
    )


@dataclass(frozen=True)
class HandoffLimits:
    """Limits of KV transfers from prefill to decode engines."""

    handoff_min_tokens: int = limit(
        1_024,
        "uncached prompt tokens from which a second engine prefills, without a latency target or profile to judge by",
    )
    handoff_prefill_seconds: float = limit(20.0, "a prefill engine's whole response; then another one, or no transfer")
    handoff_lease_seconds: float = limit(
        20.0,
        "from a prefill's response to the decode's start; NIXL keeps blocks 30 s, and later ones may be another prompt's",
    )
    handoff_first_event_seconds: float = limit(
        15.0, "a decode engine's first event after a transfer; Mooncake waits 540 s, a frozen peer for ever"
    )
    handoff_output_token_seconds: float = limit(0.1, "added to that for each token of a response that is not streamed")
    handoff_suspect_seconds: float = limit(
        30.0, "a prefill engine, or a pair, gets no transfer this long after a failure"
    )
