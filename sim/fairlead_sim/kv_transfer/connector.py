"""The KV connector of one engine: it leases blocks to decode engines and pulls them from prefill
ones.

A prefill (``do_remote_decode``) keeps its blocks and returns what the decode engine needs. A decode
(``do_remote_prefill``) waits until the blocks are here. What real engines do not check is not
checked here:

- A decode may read blocks of another prompt, or blocks reused after the lease. It answers 200 with
  ``WRONG_KV_TEXT``, and its prefix cache is wrong for that prompt.
- A decode with a missing field waits forever; the engine core crashes when its client gives up.
"""

import asyncio
import math
from collections.abc import Sequence
from random import Random
from typing import Any, Protocol
from urllib.parse import urlsplit

from fairlead_sim.engine.block_pool import chain_key
from fairlead_sim.engine.scheduler import EngineCore
from fairlead_sim.generation.requests import GenerationRequest, TokenizedPrompt
from fairlead_sim.generation.responses import GenerationResponse
from fairlead_sim.http.errors import InternalError
from fairlead_sim.kv_transfer import peer_client
from fairlead_sim.kv_transfer.block_leases import BlockLeases
from fairlead_sim.kv_transfer.settings import KvTransferSettings

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


class ConnectorHost(Protocol):
    """The engine, as the connector sees it."""

    def start(self, response: GenerationResponse, *, pulled: int = 0, is_wrong: bool = False) -> None:
        """Starts the response.

        pulled: prompt tokens whose KV was pulled.
        """
        ...

    def kill_core(self) -> None: ...

    def block_keys(self, ask: GenerationRequest, prompt: TokenizedPrompt) -> tuple[int, ...]:
        """Returns the keys of the prompt's full blocks."""
        ...


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
        """Returns the longest cached prefix of any rank, in blocks."""
        return max(len(core.pool.match(keys, len(keys))) for core in self._cores)

    async def _pull_from_peer(self, response: GenerationResponse, address: str) -> None:
        """Pulls the blocks that a peer has and this engine lacks, and starts the response.

        A failed query costs its round trip.
        """
        keys = self._host.block_keys(response.request, response.request.prompts[0])
        local = self.cached_blocks(keys)
        try:
            peer_blocks = int((await peer_client.query_peer(address, "/sim/kv/held", {"keys": list(keys)}))["blocks"])
        except (peer_client.PeerRejected, peer_client.PeerUnreachable):
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
            reply = await peer_client.query_peer(address, path, question)
            local = max(len(core.pool.match(keys, len(keys))) for core in self._cores)
            travelling = len(prompt.tokens) - local * self._block_tokens
            await asyncio.sleep(self.settings.seconds(travelling) / self._speed)
            await peer_client.query_peer(address, "/sim/kv/release", {"name": name})
        except peer_client.PeerRejected:
            self._on_pull_failed(response)
            return
        except peer_client.PeerUnreachable:
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
