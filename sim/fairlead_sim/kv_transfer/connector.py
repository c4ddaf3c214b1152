"""The KV connector of one engine: it leases blocks to decode engines and pulls them from prefill
ones.

A prefill (``do_remote_decode``) keeps its blocks and returns what the decode engine needs. A decode
(``do_remote_prefill``) waits until the blocks are here. What real engines do not check is not
checked here:

- A decode may read blocks of another prompt, or blocks reused after the lease. It answers 200 with
  ``WRONG_KV_TEXT``, and its prefix cache is wrong for that prompt.
- A decode with a missing field waits forever; the engine core crashes when its client gives up.

The blocks that a prefill engine keeps until they are pulled or their lease expires.

Readers name block numbers, and nothing else is checked, as in real engines. A reader of a block
that was reused gets its present content.

A query to another engine over its side channel. It has no timeout: a frozen peer blocks it.

Settings and command line of KV transfer; vLLM has these in ``--kv-transfer-config``.
"""

import argparse
import asyncio
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Protocol
from urllib.parse import urlsplit

import msgspec

from fairlead.errors import FairleadError, SettingsError
from fairlead_sim.engine.block_pool import chain_key
from fairlead_sim.engine.scheduler import EngineCore, EngineSequence
from fairlead_sim.generation.requests import GenerationRequest, TokenizedPrompt
from fairlead_sim.generation.responses import GenerationResponse
from fairlead_sim.http.errors import InternalError

WRONG_KV_TEXT = " bad"
MAX_WRONG_KV_TOKENS = 64
_FAILED_MESSAGE = "Internal server error"
_NIXL_FIELDS: tuple[tuple[str, type], ...] = (
    ("remote_engine_id", str),
    ("remote_request_id", str),
    ("remote_host", str),
    ("remote_port", int),
    ("tp_size", int),
)


@dataclass(slots=True)
class BlockLease:
    """The lease of one prefilled prompt; the last of its ``blocks`` may be partial."""

    rank: int
    blocks: list[int]
    tokens: int
    expiry: asyncio.TimerHandle


class BlockLeases:
    """The leases of one engine, by the name that was promised to the reader."""

    def __init__(self, cores: Sequence[EngineCore], seconds: float) -> None:
        self._cores = cores
        self._seconds = seconds
        self._leases: dict[str, BlockLease] = {}
        self._partial: dict[tuple[int, int], int] = {}
        self._waiters: dict[str, list[Callable[[], None]]] = {}
        self._loop = asyncio.get_running_loop()
        self.expired = 0

    def __len__(self) -> int:
        return len(self._leases)

    def get(self, name: str) -> BlockLease | None:
        return self._leases.get(name)

    def grant(self, name: str, rank: int, sequence: EngineSequence) -> BlockLease | None:
        """Keeps the blocks of a completed prompt until release or expiry, and calls the waiters.

        Returns None if some are no longer cached, or memory lacks room for a partial last block.
        """
        core = self._cores[rank]
        pool, size = core.pool, core.block_tokens
        full = sequence.prompt_tokens // size
        blocks = pool.match(sequence.chain, full)
        if len(blocks) < full or sequence.tokens is None:
            return None
        pool.acquire(blocks)
        rest = sequence.tokens[full * size : sequence.prompt_tokens]
        if rest:
            last = pool.allocate()
            if last is None:
                pool.release(blocks)
                return None
            self._partial[rank, last] = chain_key(sequence.chain[full - 1] if full else 0, rest)
            blocks.append(last)
        expiry = self._loop.call_later(self._seconds, self._expire_lease, name)
        lent = self._leases[name] = BlockLease(rank, blocks, sequence.prompt_tokens, expiry)
        for callback in self._waiters.pop(name, ()):
            callback()
        return lent

    def renew(self, name: str) -> None:
        """Makes the lease last two thirds of its full duration from now on, before a read."""
        lent = self._leases.get(name)
        if lent is not None:
            lent.expiry.cancel()
            lent.expiry = self._loop.call_later(self._seconds * 2 / 3, self._expire_lease, name)

    def contents(self, rank: int, blocks: Sequence[int]) -> list[int | None]:
        """Returns the present contents of blocks. Raises IndexError for an unknown block number."""
        pool = self._cores[rank].pool
        if any(not 0 <= block < pool.blocks for block in blocks):
            raise IndexError("no such block")
        return [pool.key_in(block) or self._partial.get((rank, block)) for block in blocks]

    def release(self, name: str) -> bool:
        """Releases the blocks of a lease. Returns False if there is no such lease any more."""
        lent = self._leases.pop(name, None)
        if lent is None:
            return False
        lent.expiry.cancel()
        self._cores[lent.rank].pool.release(lent.blocks)
        return True

    def call_when_granted(self, name: str, callback: Callable[[], None]) -> None:
        self._waiters.setdefault(name, []).append(callback)

    def remove_waiter(self, name: str, callback: Callable[[], None]) -> None:
        waiting = self._waiters.get(name, [])
        if callback in waiting:
            waiting.remove(callback)

    def close(self) -> None:
        for lent in self._leases.values():
            lent.expiry.cancel()

    def _expire_lease(self, name: str) -> None:
        if self.release(name):
            self.expired += 1


class PeerUnreachable(FairleadError):
    """Raised if the peer does not listen or breaks the connection."""


class PeerRejected(FairleadError):
    """Raised if the peer rejects the query."""


async def query_peer(address: str, path: str, query: object) -> dict[str, Any]:
    """Posts a query to ``HOST:PORT`` and returns the reply. Raises PeerUnreachable or
    PeerRejected.
    """
    host, _, port = address.rpartition(":")
    body = msgspec.json.encode(query)
    head = f"POST {path} HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\nconnection: close\r\n"
    writer: asyncio.StreamWriter | None = None
    try:
        reader, writer = await asyncio.open_connection(host.strip("[]"), int(port))
        writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        reply = await reader.read()
    except (OSError, ValueError) as error:
        raise PeerUnreachable(f"the engine at {address} is unreachable") from error
    finally:
        if writer is not None:
            writer.transport.abort()
    status, _, rest = reply.partition(b"\r\n\r\n")
    if not rest:
        raise PeerUnreachable(f"the engine at {address} closed the connection without a reply")
    if not status.startswith(b"HTTP/1.1 200"):
        raise PeerRejected(f"the engine at {address} rejected the query")
    document: dict[str, Any] = msgspec.json.decode(rest)
    return document


@dataclass(frozen=True, slots=True)
class KvTransferSettings:
    """The settings of one connector: ``none``, ``nixl``, ``mooncake``, ``sglang`` or ``p2p``.

    - recompute: False is vLLM's default, by which a failed pull is an error.
    - lease_seconds, abort_seconds, dead_peer_seconds: wall-clock seconds.
    """

    connector: str = "none"
    role: str = "kv_both"
    recompute: bool = False
    lease_seconds: float = 30.0  # NIXL: how long a prefill's blocks are kept
    abort_seconds: float = 480.0  # Mooncake, SGLang: the same, and the wait of a decode
    dead_peer_seconds: float = 2.0  # until a dead peer is noticed; Mooncake: plus abort_seconds
    bytes_per_token: int = 131_072
    bytes_per_second: float = 10e9
    host: str = "127.0.0.1"  # address that a prefill engine gives to others

    def seconds(self, tokens: int) -> float:
        """Returns the transfer time of this many tokens, in seconds at speed 1."""
        return tokens * self.bytes_per_token / self.bytes_per_second


def add_kv_arguments(parser: argparse.ArgumentParser) -> None:
    default = KvTransferSettings()
    parser.add_argument(
        "--kv-connector", choices=("none", "nixl", "mooncake", "sglang", "p2p"), default=default.connector
    )
    parser.add_argument("--kv-role", choices=("kv_producer", "kv_consumer", "kv_both"), default=default.role)
    parser.add_argument(
        "--kv-load-failure-policy",
        choices=("fail", "recompute"),
        default="fail",
        help="the outcome of a request whose KV cannot be pulled: an error, as in vLLM by default, or a plain answer",
    )
    parser.add_argument(
        "--kv-lease-seconds",
        type=float,
        default=default.lease_seconds,
        help="NIXL: seconds for which a prefill is kept",
    )
    parser.add_argument(
        "--kv-abort-seconds",
        type=float,
        default=default.abort_seconds,
        help="Mooncake and SGLang: seconds for which a prefill is kept, and a decode waits for one",
    )
    parser.add_argument(
        "--kv-dead-peer-seconds",
        type=float,
        default=default.dead_peer_seconds,
        help="seconds until a pull notices that its peer has crashed",
    )
    parser.add_argument("--kv-bytes-per-token", type=int, default=default.bytes_per_token)
    parser.add_argument("--kv-bytes-per-second", type=float, default=default.bytes_per_second)
    parser.add_argument("--kv-host", default=default.host, help="the address from which other engines pull")


def parse_kv_settings(arguments: argparse.Namespace) -> KvTransferSettings:
    """Returns the settings. Raises SettingsError with the flag's name."""
    names = ("lease_seconds", "abort_seconds", "dead_peer_seconds", "bytes_per_token")
    for name in names:
        if getattr(arguments, f"kv_{name}") < 0:
            raise SettingsError("must not be negative", field=f"--kv-{name.replace('_', '-')}")
    if arguments.kv_bytes_per_second <= 0:
        raise SettingsError("must be positive", field="--kv-bytes-per-second")
    return KvTransferSettings(
        connector=arguments.kv_connector,
        role=arguments.kv_role,
        recompute=arguments.kv_load_failure_policy == "recompute",
        lease_seconds=arguments.kv_lease_seconds,
        abort_seconds=arguments.kv_abort_seconds,
        dead_peer_seconds=arguments.kv_dead_peer_seconds,
        bytes_per_token=arguments.kv_bytes_per_token,
        bytes_per_second=arguments.kv_bytes_per_second,
        host=arguments.kv_host,
    )


class ConnectorHost(Protocol):
    """The engine, as the connector sees it."""

    def start(self, response: GenerationResponse, *, pulled: int = 0, is_wrong: bool = False) -> None:
        """Starts the response.

        pulled: prompt tokens whose KV was pulled.
        """

    def kill_core(self) -> None: ...

    def block_keys(self, ask: GenerationRequest, prompt: TokenizedPrompt) -> tuple[int, ...]:
        """Returns the keys of the prompt's full blocks."""


class KvConnector:
    """The connector of one engine. Roles are enforced only where the real connector does so."""

    def __init__(
        self,
        settings: KvTransferSettings,
        *,
        cores: Sequence[EngineCore],
        speed: float,
        random: Random,
        port: int,
        host: ConnectorHost,
    ) -> None:
        self.settings = settings
        self.port = port
        number = f"{random.getrandbits(128):032x}"
        self.engine_id = f"{number[:8]}-{number[8:12]}-{number[12:16]}-{number[16:20]}-{number[20:]}"
        nixl = self.settings.connector == "nixl"
        self.leases = BlockLeases(cores, self.settings.lease_seconds if nixl else self.settings.abort_seconds)
        self._cores = cores
        self._speed = speed
        self._block_tokens = cores[0].block_tokens
        self._host = host
        self._pulls: dict[GenerationResponse, asyncio.Task[None]] = {}
        self._hanging_responses: set[GenerationResponse] = set()
        self._spoilt: set[int] = set()
        self.pulled_total = self.failed_total = self.wrong_total = 0

    def state(self) -> dict[str, object]:
        """Returns counters for ``/sim/state``."""
        return {
            "engine_id": self.engine_id,
            "lent": len(self.leases),
            "expired_total": self.leases.expired,
            "pulling": len(self._pulls),
            "hanging": len(self._hanging_responses),
            "pulled_total": self.pulled_total,
            "failed_total": self.failed_total,
            "wrong_total": self.wrong_total,
        }

    def is_spoilt(self, rank: int, keys: Sequence[int]) -> bool:
        """Whether the prefix cache has wrong KV for this prompt."""
        if not self._spoilt:
            return False
        cached = self._cores[rank].pool.match(list(keys), len(keys))
        self._spoilt.difference_update(keys[len(cached) :])  # evicted and recomputed since
        return not self._spoilt.isdisjoint(keys[: len(cached)])

    # Prefill -------------------------------------------------------------------------------------------------------------

    def grant_lease(self, response: GenerationResponse) -> dict[str, object] | None:
        """Leases the prompt's blocks of a complete response if the request demands it.

        Returns NIXL's parameters for the client; None for other connectors, or without a lease.
        """
        params = response.request.kv_transfer_params
        if params is None or len(response.choices) != 1:
            return None
        choice, connector = response.choices[0], self.settings.connector
        if connector == "sglang":
            if self.settings.role == "kv_producer" and params.get("bootstrap_room") is not None:
                self.leases.grant(str(params["bootstrap_room"]), choice.rank, choice.sequence)
            return None
        if not params.get("do_remote_decode"):
            return None
        if connector == "mooncake":
            self.leases.grant(str(params.get("transfer_id")), choice.rank, choice.sequence)
            return None
        lent = self.leases.grant(choice.sequence.id, choice.rank, choice.sequence)
        if lent is None:
            return None
        return {
            "do_remote_prefill": True,
            "do_remote_decode": False,
            "remote_block_ids": [lent.blocks],
            "remote_engine_id": self.engine_id,
            "remote_request_id": choice.sequence.id,
            "remote_host": self.settings.host,
            "remote_port": self.port,
            "tp_size": 1,
            "dcp_size": 1,
            "pp_size": 1,
            "remote_num_tokens": lent.tokens,
            "remote_blocks_expiry_time": None,
            "transfer_mode": "pull",
            "remote_prefill_cached_tokens": choice.sequence.cached_tokens,
        }

    # Decode --------------------------------------------------------------------------------------------------------------

    def take_over(self, response: GenerationResponse) -> bool:
        """Starts the pull that a request demands; the connector then starts the response.

        Returns False if the engine must start the response. Parameters that crash a real core kill
        the core now. With a missing field the response hangs. An SGLang prefill engine answers with
        one token.
        """
        params, connector = response.request.kv_transfer_params, self.settings.connector
        if params is None or len(response.request.prompts) != 1:
            return False
        if connector == "sglang":
            if params.get("bootstrap_room") is None:
                return False
            if self.settings.role == "kv_producer":
                response.request.max_tokens = 1
                return False
            return self._start_pull(response, self._pull_sglang(response, params))
        if connector == "mooncake":
            return self._take_mooncake(response, params)
        if connector == "p2p":
            return self._take_from_peer(response, params.get("remote_kv_source"))
        if not params.get("do_remote_prefill"):
            return False
        numbers = params.get("remote_block_ids")
        needed = math.ceil(len(response.request.prompts[0].tokens) / self._block_tokens)
        if not isinstance(numbers, list) or not _is_block_list(numbers) or len(numbers[0]) < needed:
            self._host.kill_core()
            return True
        if not all(isinstance(params.get(name), kind) for name, kind in _NIXL_FIELDS):
            self._hanging_responses.add(response)
            return True
        return self._start_pull(response, self._pull_nixl(response, params))

    def on_response_ended(self, response: GenerationResponse, outcome: str) -> None:
        """Cancels the pull. With NIXL, a client that leaves a hanging response kills the core."""
        pull = self._pulls.pop(response, None)
        if pull is not None:
            pull.cancel()
        if response in self._hanging_responses:
            self._hanging_responses.discard(response)
            if outcome == "gone" and self.settings.connector == "nixl":
                self._host.kill_core()

    def close(self) -> None:
        """Cancels all pulls and leases."""
        self.leases.close()
        for pull in self._pulls.values():
            pull.cancel()

    def _take_mooncake(self, response: GenerationResponse, params: dict[str, Any]) -> bool:
        role = self.settings.role
        wrong = params.get("do_remote_decode") and role == "kv_consumer"
        if wrong or (params.get("do_remote_prefill") and role == "kv_producer"):
            self._host.kill_core()
            return True
        if not params.get("do_remote_prefill"):
            return False
        if not isinstance(params.get("transfer_id"), str):
            self._hanging_responses.add(response)
            return True
        return self._start_pull(response, self._pull_mooncake(response, params))

    def _take_from_peer(self, response: GenerationResponse, source: object) -> bool:
        """Starts a pull from the peer-to-peer tier. Returns False if the source is incomplete."""
        if not isinstance(source, dict):
            return False
        host, port, name = (source.get(field) for field in ("remote_host", "remote_port", "kv_request_id"))
        if not (host and port and name):
            return False
        return self._start_pull(response, self._pull_from_peer(response, f"{host}:{port}"))

    def cached_blocks(self, keys: Sequence[int]) -> int:
        return max(len(core.pool.match(keys, len(keys))) for core in self._cores)

    async def _pull_from_peer(self, response: GenerationResponse, address: str) -> None:
        """Pulls the blocks that a peer has and this engine lacks, and starts the response.

        A failed query costs its round trip.
        """
        keys = self._host.block_keys(response.request, response.request.prompts[0])
        local = self.cached_blocks(keys)
        try:
            peer_blocks = int((await query_peer(address, "/sim/kv/held", {"keys": list(keys)}))["blocks"])
        except (PeerRejected, PeerUnreachable):
            self.failed_total += 1
            peer_blocks = 0
        if peer_blocks > local:
            travelling = (peer_blocks - local) * self._block_tokens
            await asyncio.sleep(self.settings.seconds(travelling) / self._speed)
            self.pulled_total += 1
            response.request.reported_cached_tokens = peer_blocks * self._block_tokens
        self._pulls.pop(response, None)
        self._host.start(response, pulled=peer_blocks * self._block_tokens if peer_blocks > local else 0)

    def _start_pull(self, response: GenerationResponse, pull: Any) -> bool:
        task = asyncio.get_running_loop().create_task(pull)
        self._pulls[response] = task
        return True

    async def _pull_nixl(self, response: GenerationResponse, params: dict[str, Any]) -> None:
        """Reads the named blocks of the named engine, whatever they contain."""
        response.request.reported_cached_tokens = int(params.get("remote_prefill_cached_tokens") or 0)
        address = f"{params['remote_host']}:{params['remote_port']}"
        question = {
            "engine_id": params["remote_engine_id"],
            "request_id": params["remote_request_id"],
            "blocks": params["remote_block_ids"][0],
        }
        await self._pull(response, address, "/sim/kv/read", question, params["remote_request_id"])

    async def _pull_mooncake(self, response: GenerationResponse, params: dict[str, Any]) -> None:
        """Waits until the peer has the transfer, then pulls it."""
        response.request.reported_cached_tokens = response.prompt_tokens
        address = urlsplit(str(params.get("remote_bootstrap_addr"))).netloc
        question = {"engine_id": params.get("remote_engine_id"), "transfer_id": params["transfer_id"]}
        await self._pull(response, address, "/sim/kv/take", question, params["transfer_id"])

    async def _pull_sglang(self, response: GenerationResponse, params: dict[str, Any]) -> None:
        """Waits until the peer has the bootstrap room, then pulls it."""
        address = f"{params.get('bootstrap_host')}:{params.get('bootstrap_port')}"
        room = str(params["bootstrap_room"])
        await self._pull(response, address, "/sim/kv/take", {"transfer_id": room}, room)

    async def _pull(self, response: GenerationResponse, address: str, path: str, question: object, name: str) -> None:
        prompt = response.request.prompts[0]
        keys = self._host.block_keys(response.request, prompt)
        try:
            reply = await query_peer(address, path, question)
            local = max(len(core.pool.match(keys, len(keys))) for core in self._cores)
            travelling = len(prompt.tokens) - local * self._block_tokens
            await asyncio.sleep(self.settings.seconds(travelling) / self._speed)
            await query_peer(address, "/sim/kv/release", {"name": name})
        except PeerRejected:
            self._on_pull_failed(response)
            return
        except PeerUnreachable:
            extra_seconds = 0.0 if self.settings.connector == "nixl" else self.settings.abort_seconds
            await asyncio.sleep(self.settings.dead_peer_seconds + extra_seconds)
            self._on_pull_failed(response)
            return
        expected = list(keys)
        rest = prompt.tokens[len(keys) * self._block_tokens :]
        if rest:
            expected.append(chain_key(keys[-1] if keys else 0, rest))
        wrong = reply["contents"][local : len(expected)] != expected[local:]
        self.pulled_total += 1
        if wrong:
            self.wrong_total += 1
            self._spoilt.update(keys[local:])
        self._pulls.pop(response, None)
        self._host.start(response, pulled=len(prompt.tokens), is_wrong=wrong)

    def _on_pull_failed(self, response: GenerationResponse) -> None:
        """Computes the prompt here or fails the response, by policy."""
        self.failed_total += 1
        self._pulls.pop(response, None)
        if self.settings.recompute:
            self._host.start(response)
        else:
            response.fail(InternalError(_FAILED_MESSAGE))


def _is_block_list(value: list[Any]) -> bool:
    return bool(value) and isinstance(value[0], list) and all(isinstance(number, int) for number in value[0])
