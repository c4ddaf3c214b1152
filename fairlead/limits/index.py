"""Limits of KV events and of the KV-cache index."""

from dataclasses import dataclass

from fairlead.limits.limit_field import limit


@dataclass(frozen=True)
class KvEventLimits:
    """Limits of the KV events of engines."""

    kv_events_bytes: int = limit(
        2 * 1024 * 1024, "one batch of KV events; 3.3 to 7 bytes a token, so prompts of 300,000 tokens fit"
    )
    kv_events_in_batch: int = limit(131_072, "events of one batch; a long prompt evicts one block per event")
    kv_event_blocks: int = limit(131_072, "blocks of one KV event: two million tokens at block size 16")
    kv_slice_bytes: int = limit(
        8_192,
        "events of a batch applied at once, some 5 ms; the rest of a larger batch waits for other engines and queries",
    )
    kv_event_block_tokens: int = limit(65_536, "tokens of one block; engines use 16 to 256, some hybrid ones 1,000")
    kv_replay_buffered: int = limit(4_096, "batches buffered during a replay; beyond, the history counts as lost")
    kv_replay_buffered_bytes: int = limit(64 * 1024 * 1024, "the same in bytes")
    kv_sequences_known: int = limit(128, "last batches whose digest is kept, to tell a repetition from a restart")
    kv_blocks: int = limit(
        12_000_000, "blocks of all instances in one indexer, some 60 bytes each; namespaces get equal shares"
    )
    kv_blocks_per_instance: int = limit(4_194_304, "blocks of one instance, all tiers; the oldest go")
    kv_orphans_per_instance: int = limit(
        32_768, "blocks of one instance with an unknown parent, with their tokens; the oldest go"
    )
    kv_orphans_bytes: int = limit(32 * 1024 * 1024, "token ids and extra keys of such blocks, of one instance")
    kv_adapters: int = limit(4_096, "adapter names of one instance; blocks of others are not credited")
    kv_shared_seconds: float = limit(
        600.0, "how long a block counts as stored after its last write: a shared store reports no evictions"
    )
    kv_pending_bytes: int = limit(
        16 * 1024 * 1024, "events of one engine that were read and not applied; beyond, it has to replay them"
    )
    kv_all_unread_bytes: int = limit(
        256 * 1024 * 1024,
        "bytes of all engines that are not applied, with replays; beyond, namespaces with most are disconnected",
    )
    kv_receive_buffer_bytes: int = limit(
        256 * 1024, "unread events of one engine in the kernel; without it, Linux lets them grow to several MiB"
    )
    kv_replay_unread_bytes: int = limit(
        64 * 1024 * 1024, "unread bytes of one replay; beyond, it is cut, and its rest requested if it brought any"
    )
    kv_replays: int = limit(8, "replays at the same time: each has some 10,000 batches; the others wait")
    kv_turn_bytes: int = limit(16_384, "events of one engine processed before the next engine's")
    kv_loop_bytes: int = limit(262_144, "events of all engines processed before other work of the indexer")
    kv_reconnect_seconds: float = limit(0.1, "first pause before a reconnect to an engine's events; doubles each time")
    kv_query_pause_seconds: float = limit(1.0, "first pause before an engine is queried again; doubles each time")


@dataclass(frozen=True)
class IndexLimits:
    """Limits of the KV-cache index in Redis."""

    index_lease_seconds: float = limit(
        1.5, "an indexer that does not renew its lease for this long may be replaced; renewed three times as often"
    )
    index_entry_blocks: int = limit(32_768, "blocks of one entry of the change stream, some 300 kB; then the next")
    index_stream_entries: int = limit(
        16_384, "entries of that stream; before it grows longer, the oldest parts of the index are stored"
    )
    index_pending_blocks: int = limit(
        262_144,
        "changed blocks of a model that wait while Redis is away or too slow; beyond, they are dropped and everything is "
        "stored again",
    )
    index_kept_batches: int = limit(
        4_096, "batches of an instance until it is stored again: an engine can replay its last 10,000"
    )
