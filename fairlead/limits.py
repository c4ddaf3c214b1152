"""Every limit of Fairlead in one table: name, value, why. docs/reference/limits.md is generated from it.

A limit that is passed gives a clear error and loses nothing.
"""

from dataclasses import dataclass, fields
from dataclasses import field as _field
from typing import Any


def _limit(value: int | float, why: str) -> Any:
    return _field(default=value, metadata={"why": why})


@dataclass(frozen=True, slots=True)
class Limits:
    """Sizes in bytes, times in seconds, counts plain. Pass a changed copy where a test needs another value."""

    request_line_bytes: int = _limit(8_192, "a URL longer than this is an attack or a mistake; answered 414")
    header_bytes: int = _limit(
        32_768, "all request headers together; engines had CVEs for unlimited ones; answered 431"
    )
    headers_count: int = _limit(100, "header fields of one request; answered 431")
    body_bytes: int = _limit(
        32 * 1024 * 1024, "a prompt of about 8 million tokens or a handful of images; answered 413"
    )
    body_wire_factor: int = _limit(8, "bytes on the wire per body byte when chunked: 1-byte chunks are not traffic")
    json_depth: int = _limit(128, "nesting of a request body; no client needs more and parsers differ beyond")
    trailer_bytes: int = _limit(8_192, "trailers are read and dropped; more is refused")
    header_timeout_seconds: float = _limit(5.0, "slowloris: from the first byte of a request head to its end")
    body_idle_seconds: float = _limit(30.0, "no byte of a body for this long ends the connection with 408")
    keepalive_idle_seconds: float = _limit(75.0, "an idle client connection is closed")
    connections: int = _limit(20_000, "client connections of one worker; the next is answered 503 and closed")
    pipelined_requests: int = _limit(16, "requests read ahead on one connection; then reading pauses")
    upstream_idle_seconds: float = _limit(
        4.0, "idle engine connections are dropped before uvicorn's 5 s keep-alive does"
    )
    upstream_idle_per_instance: int = _limit(256, "pooled engine connections of one instance")
    connect_seconds: float = _limit(2.0, "TCP connect to an engine, then the request is tried elsewhere")
    first_token_seconds: float = _limit(600.0, "an engine that says nothing this long is given up")
    stream_idle_seconds: float = _limit(120.0, "a stream without a byte this long is broken off with an error event")
    unresponsive_seconds: float = _limit(
        5.0, "an engine with requests that says nothing to anybody this long must take a connection, or is given up"
    )
    response_head_bytes: int = _limit(65_536, "an engine's response head; more is a broken engine")
    sse_event_bytes: int = _limit(1024 * 1024, "one event of an engine's stream as far as Fairlead reads into it")
    max_attempts: int = _limit(3, "engines tried for one request before the first byte")
    retry_share: float = _limit(0.2, "retries per request over the last 10 s, at least 3 always allowed")
    drain_seconds: float = _limit(60.0, "requests in flight when SIGTERM arrives may finish for this long")
    write_high_bytes: int = _limit(256 * 1024, "unsent bytes to a slow reader before its engine is paused")
    queued_requests: int = _limit(2_000, "requests of one model held by a worker before engines; the next is refused")
    queued_bytes: int = _limit(256 * 1024 * 1024, "bodies of a model's held requests in a worker; the next is refused")
    queue_starting_seconds: float = _limit(
        30.0, "a request waits so long for the first instance of a model that is starting, then 503"
    )
    queue_waking_seconds: float = _limit(
        600.0,
        "the same of a model that has no instance and gets one for this request: a machine may have to be found first",
    )
    wake_hint_seconds: float = _limit(
        2.0, "the autoscaler is told of a model whose requests wait for a first instance this often, while they do"
    )
    queue_seconds: float = _limit(60.0, "a request held this long is answered 503: clients give up about then")
    decision_log: int = _limit(4_096, "decisions kept in memory by a worker")
    prefix_blocks: int = _limit(4_096, "blocks hashed of one prompt; what lies behind never decides a route")
    mirror_blocks_per_instance: int = _limit(262_144, "remembered prefix blocks of one instance")
    hot_prefixes: int = _limit(10_000, "entries of the hot-prefix table of one model")
    models: int = _limit(1_000, "models in a fleet file")
    instances: int = _limit(4_096, "instances in a fleet file")
    fleet_file_bytes: int = _limit(16 * 1024 * 1024, "a fleet or manifest file")
    sim_engines_per_process: int = _limit(256, "simulated engines in one process")
    sim_queue: int = _limit(100_000, "requests waiting in one simulated engine")
    yaml_nodes: int = _limit(500_000, "values in a YAML file once aliases are expanded; what alias bombs run into")
    metric_models: int = _limit(1_000, "models with metrics of their own; the rest are counted as `other`")
    metric_instances: int = _limit(4_096, "instances of one model with metrics of their own; then the oldest goes")
    metric_label_values: int = _limit(64, "values of a label such as `kind` or `rule`; the rest are counted as `other`")
    metric_retention_seconds: float = _limit(300.0, "an instance's counters stay this long after it left the fleet")
    body_seconds: float = _limit(300.0, "from the end of a request's head to the end of its body; answered 408")
    json_containers: int = _limit(200_000, "arrays and objects in one request body; a chat has a few per message")
    choices: int = _limit(128, "n and best_of: each costs a whole answer; a billion of them has killed engines")
    logprobs: int = _limit(100, "logprobs and top_logprobs: each is a sort over the vocabulary")
    max_tokens: int = _limit(16_777_216, "max_tokens and max_completion_tokens; the engine's context is the real bound")
    stop_strings: int = _limit(64, "stop strings of one request; each is searched after every token")
    tools: int = _limit(1_024, "tools of one request")
    schema_bytes: int = _limit(262_144, "response_format and other grammars of one request; engines compile them")
    response_buffer_bytes: int = _limit(
        1024 * 1024, "of a plain answer, kept until it is whole, so that it can be retried"
    )
    scrape_seconds: float = _limit(2.0, "each engine's metrics page is asked for this often")
    scrape_timeout_seconds: float = _limit(1.5, "an engine that takes longer to show its metrics is asked again later")
    scrape_bytes: int = _limit(4 * 1024 * 1024, "a metrics page; real ones have about 90 kB")
    redis_scan_seconds: float = _limit(10.0, "until a listing of a Redis' keys finds the next one")
    redis_timeout_seconds: float = _limit(1.0, "an exchange with Redis; nothing of a request waits for one")
    redis_connect_seconds: float = _limit(
        3.0, "the same where a connection has to be opened first, which takes several exchanges of its own"
    )
    redis_ping_seconds: float = _limit(2.0, "a Redis that is not being used is asked this often whether it is there")
    redis_pause_seconds: float = _limit(
        1.5, "longest pause between two attempts to reach Redis: it is used again within 2 s of its return"
    )
    redis_stale_seconds: float = _limit(60.0, "what Redis told counts as stale this long after it went, then as gone")
    published_decisions: int = _limit(10_000, "entries of one model's decision stream in Redis, about 1 kB each")
    published_decision_seconds: float = _limit(900.0, "entries of the decision stream older than this are trimmed")
    published_decisions_pending: int = _limit(
        4_096, "decisions kept for Redis while it is away; the oldest are dropped"
    )
    dispatch_batch_seconds: float = _limit(
        0.05, "what workers sent is gathered this long until other gateways are told"
    )
    dispatches_pending: int = _limit(
        4_096, "dispatches kept for other gateways while Redis is away; the oldest are dropped"
    )
    dispatch_blocks: int = _limit(512, "hashes of one prompt that other gateways are told: its first 450,000 tokens")
    dispatch_entry_bytes: int = _limit(65_536, "one entry of the stream of dispatches; more become several")
    dispatch_entries: int = _limit(10_000, "entries of one model's stream of dispatches, some 3 kB each")
    dispatch_retention_seconds: float = _limit(300.0, "and they are kept this long, for gateways that start")
    dispatch_poll_seconds: float = _limit(0.05, "what other gateways sent is looked for this often")
    dispatch_idle_poll_seconds: float = _limit(0.5, "the same while no other gateway is heard")
    dispatch_streams: int = _limit(200, "streams read in one round; of more models, those that are quiet take turns")
    heartbeat_seconds: float = _limit(
        0.5, "a gateway with requests in flight is heard this often; three times later its share of the load is gone"
    )
    idle_heartbeat_seconds: float = _limit(5.0, "the same of a model of which it has nothing in flight")
    busy_heartbeats: int = _limit(500, "models with requests in flight that one gateway tells of in a second")
    idle_heartbeats: int = _limit(200, "the same of models without")
    peers: int = _limit(256, "other gateways that are heard; of more the load is unknown")
    hot_prefix_poll_seconds: float = _limit(0.5, "the table of hot prefixes is written, or asked for, this often")
    hot_prefix_lease_seconds: float = _limit(2.0, "a gateway that has not written the table this long keeps it no more")
    keys: int = _limit(100_000, "API keys in a keys file")
    breaker_consecutive_faults: int = _limit(3, "faults of one engine in a row until it is ejected; load is no fault")
    breaker_window_responses: int = _limit(
        10, "answers of one engine within 10 s from which its share of faults is judged"
    )
    breaker_fault_share: float = _limit(0.5, "share of faults among them from which the engine is ejected")
    ejected_share: float = _limit(0.5, "of a model's ready instances, ejected at once at most")
    ejection_seconds: float = _limit(5.0, "first ejection; doubles each time, jittered by a fifth")
    max_ejection_seconds: float = _limit(120.0, "longest ejection")
    warm_up_seconds: float = _limit(10.0, "from the answered probe until an instance has its whole share again")
    first_token_min_seconds: float = _limit(15.0, "an engine silent to everybody this long may count as hung")
    first_token_factor: float = _limit(10.0, "and it does once it is silent this many times the predicted time")
    response_seconds: float = _limit(600.0, "a plain answer, from the request's last byte; then 504. Streams have none")
    keep_alive_seconds: float = _limit(
        15.0, "a stream silent this long gets a comment, so that nothing between closes it"
    )
    quarantined_fingerprints: int = _limit(1_024, "fingerprints of requests that engines broke off on")
    quarantine_seconds: float = _limit(
        600.0, "such a request is refused this long, since an engine takes minutes to come back"
    )
    resumable_bytes: int = _limit(1024 * 1024, "of a stream, kept so that another engine can continue it")
    max_retry_after_seconds: float = _limit(60.0, "longest Retry-After that is told")

    bodies_bytes: int = _limit(
        512 * 1024 * 1024, "request bodies of one worker, all together; then larger ones than 64 KiB get 503"
    )
    json_values: int = _limit(
        2_097_152,
        "commas in one request body: each value costs memory, and as text each is a token; no context has more",
    )
    json_fields: int = _limit(4_096, "top-level fields of a body that is changed on its way; each is walked over")
    prompts: int = _limit(
        2_048, "prompts or inputs of one request, times n; each is a request of its own to the engine"
    )
    stop_bytes: int = _limit(65_536, "all stop strings of one request; each is searched after every token")
    tools_bytes: int = _limit(4 * 1024 * 1024, "tools of one request, as JSON text")

    memory_high_share: float = _limit(
        0.9, "of the memory limit; above it bodies over 64 KiB are answered 503 with Retry-After"
    )
    memory_full_share: float = _limit(0.95, "of the memory limit; above it every body is")
    memory_check_seconds: float = _limit(0.25, "how often the process looks at its memory")
    log_lines_pending: int = _limit(4_096, "log lines that wait for a sink that takes none; the next are dropped")
    access_log_lines_pending: int = _limit(
        1_000, "lines that wait for the access log; the next are dropped and counted"
    )
    spans_pending: int = _limit(1_000, "spans that wait for the collector; the next are dropped and counted")
    span_batch: int = _limit(500, "spans sent to the collector at once")
    span_batch_seconds: float = _limit(0.5, "from the first span of a batch until it is sent")
    span_export_seconds: float = _limit(5.0, "the collector's answer to one batch")
    log_line_bytes: int = _limit(16_384, "one line or traceback of the log; the rest is cut off")

    handoff_min_tokens: int = _limit(
        1_024,
        "uncached prompt tokens from which a second engine prefills, where slack cannot be judged: no objective or no profile",
    )
    handoff_transfer_seconds: float = _limit(
        0.02, "of KV to a decode engine, whatever its size; what was seen is added"
    )
    handoff_prefill_seconds: float = _limit(20.0, "a prefill engine's whole answer; then another one, or no hand-off")
    handoff_lease_seconds: float = _limit(
        20.0,
        "from a prefill's answer to the decode's start; NIXL keeps blocks 30 s, and later ones may be another prompt's",
    )
    handoff_first_event_seconds: float = _limit(
        15.0, "a decode engine's first event after a hand-off; Mooncake waits 540 s, a frozen peer for ever"
    )
    handoff_output_token_seconds: float = _limit(0.1, "added to that for each token of an answer that is not streamed")
    handoff_output_tokens: int = _limit(2_048, "tokens of such an answer when the client names no most")
    handoff_query_seconds: float = _limit(2.0, "Mooncake's bootstrap server, asked for an engine's id")
    handoff_suspect_seconds: float = _limit(30.0, "a prefill engine, or a pair, that failed gets no hand-off this long")

    workers: int = _limit(64, "worker processes of one gateway; more only take each other's processors")
    worker_start_seconds: float = _limit(60.0, "a worker that does not listen by then is ended and started again")
    worker_query_seconds: float = _limit(2.0, "a worker asked for its state; then it is shown as not answering")
    worker_restart_seconds: float = _limit(0.1, "pause before a worker that died is started again; doubles each time")
    max_worker_restart_seconds: float = _limit(10.0, "longest such pause; ten seconds of life end the doubling")
    channel_message_bytes: int = _limit(64 * 1024 * 1024, "one message between helper and worker; a fleet has a few MB")
    channel_pending_bytes: int = _limit(
        16 * 1024 * 1024,
        "messages to a worker that does not read them; then they are dropped, and the fleet is sent later",
    )
    sibling_batch_seconds: float = _limit(0.05, "decisions are gathered this long until the other workers are told")
    sibling_decisions_pending: int = _limit(4_096, "decisions that wait for that; the oldest are dropped")
    shared_slots: int = _limit(
        8_192, "instances whose load is shared between workers; of others each worker sees its own"
    )

    kv_events_bytes: int = _limit(
        8 * 1024 * 1024, "one batch of KV events; 3.3 bytes a token, and a step of an engine has some 10,000 tokens"
    )
    kv_events_in_batch: int = _limit(131_072, "events of one batch; a long prompt pushes out one block per event")
    kv_event_blocks: int = _limit(131_072, "blocks of one KV event: two million tokens at block size 16")
    kv_event_block_tokens: int = _limit(65_536, "tokens of one block; engines use 16 to 256, some hybrid ones 1,000")
    kv_replay_buffered: int = _limit(
        4_096, "batches kept while older ones are replayed; then the history counts as lost"
    )
    kv_replay_buffered_bytes: int = _limit(64 * 1024 * 1024, "the same in bytes")
    kv_replay_batches: int = _limit(
        131_072, "batches of one replay whose digests are kept until it ends; vLLM's buffer has 10,000 by default"
    )
    kv_sequences_known: int = _limit(128, "last batches whose digest is kept, to tell a repeated one from a restart")
    kv_blocks: int = _limit(12_000_000, "blocks of all instances in one indexer, some 60 bytes each; the oldest go")
    kv_blocks_per_instance: int = _limit(4_194_304, "blocks of one instance, all tiers; the oldest go")
    kv_orphans_per_instance: int = _limit(
        32_768, "blocks of one instance whose parent is unknown, with their tokens; the oldest go"
    )
    kv_orphans_bytes: int = _limit(32 * 1024 * 1024, "token ids and extra keys of such blocks, of one instance")
    kv_adapters: int = _limit(4_096, "adapter names of one instance; blocks of others are not credited")
    kv_adapter_versions: int = _limit(8, "earlier contents of reloaded adapters that one instance may still hold")
    kv_shared_blocks: int = _limit(4_194_304, "blocks hinted to lie in one model's shared store; the oldest go")
    kv_shared_seconds: float = _limit(
        600.0, "a shared store never tells what it evicts: a block counts as there this long after it was last written"
    )
    kv_clear_echo_seconds: float = _limit(
        2.0, "an engine's own word of a clear that Fairlead asked for; what comes before it is from before the clear"
    )
    kv_frames: int = _limit(8, "parts of one message of KV events; three or five are meant, the rest is thrown away")
    kv_pending_batches: int = _limit(
        128,
        "batches of one engine that wait to be read; then its connection is not read, and what it drops is replayed",
    )
    kv_replay_pending: int = _limit(
        16_384, "batches of one replay that wait to be read; engines throw away what does not fit, so it is more"
    )
    kv_replays: int = _limit(8, "replays at once, since each brings some 10,000 batches; the others wait")
    kv_turn_bytes: int = _limit(32_768, "of one engine's events, read before it is the next engine's turn")
    kv_loop_bytes: int = _limit(
        262_144, "of all engines' events, read before anything else of the indexer has its turn"
    )
    kv_loop_seconds: float = _limit(
        0.004, "the same in seconds, since a write to Redis takes several turns of the loop"
    )
    kv_backpressure_seconds: float = _limit(
        0.002, "engines are not read for so long when the index's writer is behind; then it is asked again"
    )
    kv_connect_seconds: float = _limit(5.0, "from a connection to an engine's events until both sides have greeted")
    kv_reconnect_seconds: float = _limit(
        0.1, "first pause before an engine's events are tried again; doubles each time"
    )
    max_kv_reconnect_seconds: float = _limit(2.0, "longest such pause, jittered by half")
    kv_heartbeat_seconds: float = _limit(5.0, "an engine's events are asked this often whether they are still there")
    kv_heartbeat_timeout_seconds: float = _limit(
        15.0, "without an answer to that for so long the connection counts as broken"
    )
    kv_restart_seconds: float = _limit(
        10.0, "an engine whose events stay away so long is taken for another process when it comes back"
    )
    kv_replay_seconds: float = _limit(10.0, "a replay that brings nothing for so long has failed")
    kv_settle_seconds: float = _limit(
        1.0, "after connecting, until what was published before the engine knew of its new listener is asked for"
    )
    kv_idle_check_seconds: float = _limit(
        15.0, "an engine that says nothing for so long is asked whether anything was missed, and whether it is the same"
    )
    kv_expire_seconds: float = _limit(5.0, "how often hints of shared stores are looked through for those that ran out")
    kv_query_seconds: float = _limit(3.0, "an engine's answer to where its events are, or which adapters it serves")
    kv_query_bytes: int = _limit(4 * 1024 * 1024, "the same in bytes; an adapter takes some 300 of them")
    kv_query_pause_seconds: float = _limit(
        1.0, "first pause before an engine is asked again where its events are; doubles"
    )
    max_kv_query_pause_seconds: float = _limit(60.0, "longest such pause; an engine may have no events at all")
    kv_adapter_poll_seconds: float = _limit(
        30.0, "an engine with adapters is asked this often where they were loaded from"
    )
    kv_adapter_pause_seconds: float = _limit(1.0, "and at most this often when one appears whose place is not known")
    kv_inbound_connections: int = _limit(
        4_096, "connections of engines that publish to the indexer instead of being read from"
    )

    index_lease_seconds: float = _limit(
        1.5,
        "an indexer that does not renew its lease for this long may be followed by another; renewed three times as often",
    )
    index_flush_seconds: float = _limit(
        0.02,
        "changes of the index wait at most this long for others to be written with; less while writing takes little",
    )
    index_batch_seconds: float = _limit(0.002, "and after a pause wait this long for others of the same step")
    index_entry_blocks: int = _limit(32_768, "blocks of one entry of the stream of changes, some 300 kB; then the next")
    index_entry_bytes: int = _limit(8 * 1024 * 1024, "an entry of that stream that is read; more is damage")
    index_stream_entries: int = _limit(
        16_384, "entries of that stream; the parts of the index that are oldest are written down before it is longer"
    )
    index_stream_bytes: int = _limit(64 * 1024 * 1024, "the same in bytes")
    index_pending_blocks: int = _limit(
        262_144, "changed blocks kept for Redis while it is away; then all is written down anew when it is back"
    )
    index_backpressure_blocks: int = _limit(
        65_536, "changed blocks that wait to be written while Redis answers; with more of them engines are not read"
    )
    index_kept_batches: int = _limit(
        4_096, "batches of an instance until it is written down again: an engine can replay its last 10,000"
    )
    index_expire_seconds: float = _limit(
        900.0, "an index that nobody writes any more is gone from Redis after this long"
    )
    index_wait_seconds: float = _limit(
        0.1,
        "a mirror waits at Redis for changes of the index this long at a time; a model that is new is seen after that",
    )
    index_poll_seconds: float = _limit(
        0.02, "of a cluster, where one command cannot wait for all models, changes are asked for this often"
    )
    index_poll_busy_seconds: float = _limit(
        0.004, "and this often while some come: an engine's cache turns over quickly"
    )
    index_status_seconds: float = _limit(0.5, "and whether somebody writes it, and where it is, this often")
    index_reload_seconds: float = _limit(
        1.0, "pause between two attempts to load an index that cannot be loaded just now"
    )
    index_note_seconds: float = _limit(
        1.0,
        "what the indexer says of its instances (how far, how well heard) is written this often, when it has changed",
    )
    index_models: int = _limit(10_000, "models that `fairlead index` finds in one Redis")
    index_tokens_bytes: int = _limit(64 * 1024 * 1024, "a file of token ids that `fairlead index match` reads")
    index_engine_seconds: float = _limit(
        30.0, "`fairlead index verify` waits this long for all that one engine can replay"
    )
    index_engine_bytes: int = _limit(1024 * 1024 * 1024, "and reads at most this much of it")
    index_mirror_blocks: int = _limit(
        12_000_000, "different blocks of one model in a mirror, some 90 bytes each; further ones are not credited"
    )
    index_census_seconds: float = _limit(
        10.0, "what an instance holds and no other does is counted at most this often per million blocks (50 ms)"
    )
    index_recent_seconds: float = _limit(300.0, "blocks of prompts that were sent within this time were used lately")
    index_recent_blocks: int = _limit(
        262_144, "such blocks of one model, some 80 bytes each; beyond, the older half goes"
    )
    session_pins: int = _limit(65_536, "sessions of one model whose last instance is kept in mind; the oldest go")
    session_pin_seconds: float = _limit(
        60.0, "and for how long after a turn was sent: tools of agents take 1 to 8 s, people longer"
    )
    prefix_map_blocks: int = _limit(
        131_072, "blocks of prompt text per model whose place in the index is known, some 300 bytes each; the oldest go"
    )
    prefix_map_token_blocks: int = _limit(
        4_194_304, "token blocks of the prompts that they were learned from, 8 bytes each"
    )
    prefix_map_inflight: int = _limit(
        16_384, "prompts of one model on their way to engines; the oldest count as arrived"
    )
    prefix_map_inflight_seconds: float = _limit(600.0, "a prompt on its way counts as held there this long at most")
    prefix_map_provisional_seconds: float = _limit(
        30.0, "the same for another gateway's prompt, of which nobody tells when it ends"
    )
    prefix_map_settle_seconds: float = _limit(
        2.0, "from a prompt's end until what the engine did not tell of it counts as not held"
    )
    prefix_map_evicted_blocks: int = _limit(
        65_536, "byte blocks of one instance that were lost lately: answers that missed them were late news, not ghosts"
    )
    prefix_map_late_event_seconds: float = _limit(
        0.25,
        "news of an engine's cache take this long at most to where requests are routed; older mistakes are mistakes",
    )
    prefix_map_judge_seconds: float = _limit(
        0.5, "from an answer's end until it is judged, so that news about it has arrived"
    )
    prefix_map_corrections: int = _limit(
        16_384, "blocks looked at for one batch of corrections; the rest is in the next"
    )
    prefix_map_reports_pending: int = _limit(
        4_096, "prompts sent, and ended, that a worker keeps until it tells the index of them"
    )
    prefix_map_samples: int = _limit(256, "last prompts of a worker that the index may ask for")
    prefix_map_sample_bytes: int = _limit(
        8 * 1024 * 1024, "the same in bytes; none is kept that is over a quarter of it"
    )
    tokenize_queries_per_second: float = _limit(20.0, "prompts of one model that its engines are asked the tokens of")
    tokenize_queries_pending: int = _limit(
        64, "prompts of one model that wait for that; further ones are not asked about"
    )
    tokenize_repeat_seconds: float = _limit(5.0, "until the same prompt may be asked about again")
    tokenize_response_seconds: float = _limit(5.0, "an engine's answer with a prompt's tokens")
    tokenize_response_bytes: int = _limit(16 * 1024 * 1024, "such an answer; a token takes some 7 bytes")
    tokenize_refused_seconds: float = _limit(60.0, "until an engine that refused to tell tokens is asked again")
    tokenizer_unverified_prompts: int = _limit(
        8, "prompts in a row whose tokens of our own no engine tells of, until engines are asked instead for a minute"
    )
    rehome_hint_seconds: float = _limit(
        5.0, "which hot prefixes want another home is told this often, and is over after three times as long"
    )
    rehome_hints: int = _limit(16, "such prefixes of one model that are told, those that are worth most")
    prefix_map_stored_prompts: int = _limit(
        1_024, "prompts of one model whose links lie in Redis, 1 to 10 KB each; the oldest go"
    )
    prefix_map_stored_bytes: int = _limit(
        65_536,
        "one of them, and what is believed of one: some 130,000 tokens in blocks of 16; longer prompts are not kept",
    )
    prefix_map_stores_pending: int = _limit(
        256, "prompts that were learned and wait to be written there; the oldest go"
    )
    prefix_map_sync_seconds: float = _limit(
        2.0, "links are written there, and those of other gateways read, this often"
    )
    prefix_map_retention_seconds: float = _limit(
        86_400.0, "until the links of a model of which nobody learns go from Redis"
    )
    tokenizing_seconds: float = _limit(
        10.0, "the tokenizing process answers within this time, a tokenizer's loading included, or it is replaced"
    )
    tokenizing_pending: int = _limit(64, "prompts that wait for that process; further ones are not tokenized there")
    tokenizing_pause_seconds: float = _limit(
        60.0, "a file with which it ends waits 1 s, 2 s and so on before the next try, this long at most"
    )
    tokenizing_file_bytes: int = _limit(64 * 1024 * 1024, "a tokenizer.json; the large ones have some 20 MB")
    tokenizing_models: int = _limit(8, "tokenizers that are loaded at once, up to some 200 MB each; the oldest go")
    tokenizing_cached_tokens: int = _limit(
        1_048_576, "tokens of the last texts of one tokenizer, 8 bytes each: what follows a known beginning costs less"
    )
    tokenizing_memory_bytes: int = _limit(
        3 * 1024 * 1024 * 1024, "address space of the tokenizing process; beyond it dies and is started anew"
    )
    prefix_map_correction_seconds: float = _limit(0.05, "corrections are gathered this long until the workers are told")

    timing_rows: int = _limit(
        16_384, "what a worker keeps of its requests between two words to the helper, which learns from it"
    )
    timing_report_seconds: float = _limit(1.0, "they are told this often")
    timing_rows_pending: int = _limit(131_072, "of all workers, until they are in order")
    timing_settle_seconds: float = _limit(2.5, "which takes this long: a worker may be late")
    timing_inflight: int = _limit(65_536, "requests under way that are watched; the oldest is not measured then")

    kube_connect_seconds: float = _limit(5.0, "TCP and TLS to the Kubernetes API server")
    kube_response_seconds: float = _limit(30.0, "an answer of the API server, each page of a list; watches have no end")
    kube_response_bytes: int = _limit(256 * 1024 * 1024, "an answer of the API server; a page of pods has some 5 MB")
    kube_event_bytes: int = _limit(16 * 1024 * 1024, "one event of a watch; etcd takes objects of about 1.5 MB")
    kube_attempts: int = _limit(5, "times that a request is sent to the API server before its caller hears of it")
    kube_pause_seconds: float = _limit(0.2, "first pause between them; doubles each time, jittered by half")
    max_kube_pause_seconds: float = _limit(5.0, "longest such pause, also between attempts to watch")
    kube_retry_after_seconds: float = _limit(30.0, "longest Retry-After that is waited out; else the caller decides")
    kube_page_items: int = _limit(500, "objects asked for at once when listing")
    kube_token_seconds: float = _limit(10.0, "a token is read from its file again this long after; clusters rotate it")
    kube_watch_seconds: float = _limit(300.0, "a watch is asked to end then, by chance up to twice as late")
    kube_watch_silence_seconds: float = _limit(
        90.0, "a watch without event or bookmark (the API server sends one a minute) is frozen: another is opened"
    )
    kube_relist_spread_seconds: float = _limit(2.0, "watchers that must list anew spread over this time, by chance")
    kube_fleet_batch_seconds: float = _limit(
        0.05, "changes of the cluster are gathered this long until a gateway has a new fleet"
    )
    kube_events: int = _limit(4_096, "different events remembered; a repeated one is counted, not written anew")
    kube_events_pending: int = _limit(1_024, "events that wait to be written; more are dropped and counted")
    kube_event_burst: int = _limit(25, "different events about one object at once; then they are dropped and counted")
    kube_event_refill_seconds: float = _limit(30.0, "and one more is allowed after each of these")
    kube_series_seconds: float = _limit(10.0, "repetitions of an event are gathered this long, doubling up to ...")
    max_kube_series_seconds: float = _limit(300.0, "... this, until their number is written")
    kube_series_end_seconds: float = _limit(360.0, "an event that did not repeat for this long begins anew")
    kube_max_resumes: int = _limit(
        3, "watches refused in a row, by an API server that answers, until it is listed anew"
    )

    engine_query_seconds: float = _limit(5.0, "an engine says within this whether it sleeps, and whether it is well")
    engine_sleep_seconds: float = _limit(
        120.0, "and sleeps within this once it has nothing to do: weights go to the host's memory"
    )
    engine_wake_seconds: float = _limit(
        900.0, "one that is not awake by then is started anew: weights may be loaded again"
    )

    autoscaler_read_seconds: float = _limit(2.0, "a gateway that shows its metrics later is missing from that look")
    autoscaler_page_bytes: int = _limit(
        64 * 1024 * 1024, "a gateway's metrics page; one of 4,096 engines has about 12 MB"
    )
    autoscaler_gateways: int = _limit(256, "gateways that are read; of more the rest is left out, and said to be")
    autoscaler_carry_forward_seconds: float = _limit(
        60.0, "a gateway that does not answer is taken to go on as before for so long, then as gone"
    )
    autoscaler_tick_seconds: float = _limit(5.0, "all models are decided on this often")
    autoscaler_min_tick_seconds: float = _limit(
        0.2, "and not sooner than this after the last time, whoever asks for it"
    )
    autoscaler_hinted_ticks_per_minute: int = _limit(
        12, "looks a minute that hints may hasten, as many as come anyway: a flood leaves half of what is kept"
    )
    autoscaler_cluster_seconds: float = _limit(
        10.0, "until what there is to scale is told, or a number is written; then the tick goes on without"
    )
    autoscaler_ring_bytes: int = _limit(32 * 1024 * 1024, "looks kept in memory: of ten small models about two hours")
    autoscaler_file_bytes: int = _limit(16 * 1024 * 1024, "one file of a recording; the next follows")
    autoscaler_files: int = _limit(32, "files of a recording; the oldest are removed")
    autoscaler_signals_seconds: float = _limit(10.0, "what an engine said longer ago is not known any more")


def limits_table() -> list[tuple[str, int | float, str]]:
    """(name, value, why) for every limit, in order."""
    defaults = Limits()
    return [(item.name, getattr(defaults, item.name), item.metadata["why"]) for item in fields(Limits)]
