"""KV that goes from a prefill engine to one that decodes, with the failures that real connectors have.

A prefill (``do_remote_decode``) keeps its blocks and answers what the other engine must be told. A decode (``do_remote_prefill``)
is held back until the blocks are here. What a real engine does not check is not checked here either: a decode that reads the
blocks of another prompt, or blocks that were reused after the lease, answers 200 with ``WRONG_TEXT``, and its prefix cache is
spoilt for that prompt; a field that is missing lets it wait for ever, and the engine core dies when its client gives up.
"""

import asyncio
import math
from collections.abc import Sequence
from random import Random
from typing import Any, Protocol
from urllib.parse import urlsplit

from fairlead_sim.blocks import chained
from fairlead_sim.engine import EngineCore
from fairlead_sim.server import peer
from fairlead_sim.server.answers import Answer
from fairlead_sim.server.asks import Ask, Prompt
from fairlead_sim.server.lending import Lender
from fairlead_sim.server.problems import Broken
from fairlead_sim.server.settings import EngineSettings

WRONG_TEXT = " bad"
WRONG_TOKENS = 64
_FAILED = "Internal server error"
_NIXL_FIELDS: tuple[tuple[str, type], ...] = (
    ("remote_engine_id", str),
    ("remote_request_id", str),
    ("remote_host", str),
    ("remote_port", int),
    ("tp_size", int),
)


class Starter(Protocol):
    """The engine, as the hand-over sees it."""

    def start(self, answer: Answer, *, pulled: int = 0, wrong: bool = False) -> None:
        """Let the answer run; the KV of so many tokens of its prompt was pulled."""
        ...

    def kill_core(self) -> None:
        """The engine core dies."""
        ...

    def keys(self, ask: Ask, prompt: Prompt) -> tuple[int, ...]:
        """The keys of the prompt's full blocks."""
        ...


class Transfer:
    """The connector of one engine: lender and puller at once; roles are enforced only where the real one does."""

    def __init__(
        self, settings: EngineSettings, *, cores: Sequence[EngineCore], random: Random, port: int, starter: Starter
    ) -> None:
        self.settings = settings.kv_transfer
        self.port = port
        number = f"{random.getrandbits(128):032x}"
        self.engine_id = f"{number[:8]}-{number[8:12]}-{number[12:16]}-{number[16:20]}-{number[20:]}"
        nixl = self.settings.connector == "nixl"
        self.lender = Lender(cores, self.settings.lease_seconds if nixl else self.settings.abort_seconds)
        self._cores = cores
        self._speed = settings.speed
        self._block_tokens = settings.block_tokens
        self._starter = starter
        self._pulls: dict[Answer, asyncio.Task[None]] = {}
        self._hanging: set[Answer] = set()
        self._spoilt: set[int] = set()
        self.pulled_total = self.failed_total = self.wrong_total = 0

    def state(self) -> dict[str, object]:
        """Counts for ``/sim/state``."""
        return {
            "engine_id": self.engine_id,
            "lent": len(self.lender),
            "expired_total": self.lender.expired,
            "pulling": len(self._pulls),
            "hanging": len(self._hanging),
            "pulled_total": self.pulled_total,
            "failed_total": self.failed_total,
            "wrong_total": self.wrong_total,
        }

    def spoilt(self, rank: int, keys: Sequence[int]) -> bool:
        """Whether a plain request of this prompt would find wrong KV in the prefix cache."""
        if not self._spoilt:
            return False
        found = self._cores[rank].pool.match(list(keys), len(keys))
        self._spoilt.difference_update(keys[len(found) :])  # evicted since, and computed anew now
        return not self._spoilt.isdisjoint(keys[: len(found)])

    # Prefill -------------------------------------------------------------------------------------------------------------

    def handed_over(self, answer: Answer) -> dict[str, object] | None:
        """Keep the prompt of a complete answer if that was asked for; what NIXL's client must pass on, None for the others."""
        asked = answer.ask.transfer
        if asked is None or len(answer.choices) != 1:
            return None
        choice, connector = answer.choices[0], self.settings.connector
        if connector == "sglang":
            if self.settings.role == "kv_producer" and asked.get("bootstrap_room") is not None:
                self.lender.lend(str(asked["bootstrap_room"]), choice.rank, choice.sequence)
            return None
        if not asked.get("do_remote_decode"):
            return None
        if connector == "mooncake":
            self.lender.lend(str(asked.get("transfer_id")), choice.rank, choice.sequence)
            return None
        lent = self.lender.lend(choice.sequence.id, choice.rank, choice.sequence)
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

    def takes(self, answer: Answer) -> bool:
        """Whether the answer is for the connector to start, once its KV is here; deadly parameters act now."""
        asked, connector = answer.ask.transfer, self.settings.connector
        if asked is None or len(answer.ask.prompts) != 1:
            return False
        if connector == "sglang":
            if asked.get("bootstrap_room") is None:
                return False
            if self.settings.role == "kv_producer":
                answer.ask.max_tokens = 1
                return False
            return self._begin(answer, self._take_by_room(answer, asked))
        if connector == "mooncake":
            return self._mooncake(answer, asked)
        if connector == "p2p":
            return self._from_peer(answer, asked.get("remote_kv_source"))
        if not asked.get("do_remote_prefill"):
            return False
        numbers = asked.get("remote_block_ids")
        needed = math.ceil(len(answer.ask.prompts[0].tokens) / self._block_tokens)
        if not isinstance(numbers, list) or not _is_blocks(numbers) or len(numbers[0]) < needed:
            self._starter.kill_core()
            return True
        if not all(isinstance(asked.get(name), kind) for name, kind in _NIXL_FIELDS):
            self._hanging.add(answer)
            return True
        return self._begin(answer, self._read_blocks(answer, asked))

    def settled(self, answer: Answer, outcome: str) -> None:
        """An answer is over. A client that gives up on one that hangs takes the engine core with it."""
        pull = self._pulls.pop(answer, None)
        if pull is not None:
            pull.cancel()
        if answer in self._hanging:
            self._hanging.discard(answer)
            if outcome == "gone" and self.settings.connector == "nixl":
                self._starter.kill_core()

    def close(self) -> None:
        """Stop pulling and keeping."""
        self.lender.close()
        for pull in self._pulls.values():
            pull.cancel()

    def _mooncake(self, answer: Answer, asked: dict[str, Any]) -> bool:
        role = self.settings.role
        wrong = asked.get("do_remote_decode") and role == "kv_consumer"
        if wrong or (asked.get("do_remote_prefill") and role == "kv_producer"):
            self._starter.kill_core()
            return True
        if not asked.get("do_remote_prefill"):
            return False
        if not isinstance(asked.get("transfer_id"), str):
            self._hanging.add(answer)
            return True
        return self._begin(answer, self._take_by_id(answer, asked))

    def _from_peer(self, answer: Answer, source: object) -> bool:
        """The peer-to-peer tier: what is not wholly said is not looked for."""
        if not isinstance(source, dict):
            return False
        host, port, name = (source.get(one) for one in ("remote_host", "remote_port", "kv_request_id"))
        if not (host and port and name):
            return False
        return self._begin(answer, self._find(answer, f"{host}:{port}"))

    def held(self, keys: Sequence[int]) -> int:
        """How many of these blocks, from the first, some rank has."""
        return max(len(core.pool.match(keys, len(keys))) for core in self._cores)

    async def _find(self, answer: Answer, address: str) -> None:
        """Ask a peer what it has of the prompt, and get what is not here; a peer that is gone or has nothing costs its answer."""
        keys = self._starter.keys(answer.ask, answer.ask.prompts[0])
        local = self.held(keys)
        try:
            found = int((await peer.ask(address, "/sim/kv/held", {"keys": list(keys)}))["blocks"])
        except (peer.PeerRefused, peer.PeerGone):
            self.failed_total += 1
            found = 0
        if found > local:
            travelling = (found - local) * self._block_tokens
            await asyncio.sleep(self.settings.seconds(travelling) / self._speed)
            self.pulled_total += 1
            answer.ask.reported_cached_tokens = found * self._block_tokens
        self._pulls.pop(answer, None)
        self._starter.start(answer, pulled=found * self._block_tokens if found > local else 0)

    def _begin(self, answer: Answer, pull: Any) -> bool:
        task = asyncio.get_running_loop().create_task(pull)
        self._pulls[answer] = task
        return True

    async def _read_blocks(self, answer: Answer, asked: dict[str, Any]) -> None:
        """NIXL: read the named blocks from the named engine, whatever is in them."""
        answer.ask.reported_cached_tokens = int(asked.get("remote_prefill_cached_tokens") or 0)
        address = f"{asked['remote_host']}:{asked['remote_port']}"
        question = {
            "engine_id": asked["remote_engine_id"],
            "request_id": asked["remote_request_id"],
            "blocks": asked["remote_block_ids"][0],
        }
        await self._pull(answer, address, "/sim/kv/read", question, asked["remote_request_id"])

    async def _take_by_id(self, answer: Answer, asked: dict[str, Any]) -> None:
        """Mooncake: wait until the peer has the transfer, then get it."""
        answer.ask.reported_cached_tokens = answer.prompt_tokens
        address = urlsplit(str(asked.get("remote_bootstrap_addr"))).netloc
        question = {"engine_id": asked.get("remote_engine_id"), "transfer_id": asked["transfer_id"]}
        await self._pull(answer, address, "/sim/kv/take", question, asked["transfer_id"])

    async def _take_by_room(self, answer: Answer, asked: dict[str, Any]) -> None:
        """SGLang: the same by the number of a room."""
        address = f"{asked.get('bootstrap_host')}:{asked.get('bootstrap_port')}"
        room = str(asked["bootstrap_room"])
        await self._pull(answer, address, "/sim/kv/take", {"transfer_id": room}, room)

    async def _pull(self, answer: Answer, address: str, path: str, question: object, name: str) -> None:
        prompt = answer.ask.prompts[0]
        keys = self._starter.keys(answer.ask, prompt)
        try:
            found = await peer.ask(address, path, question)
            local = max(len(core.pool.match(keys, len(keys))) for core in self._cores)
            travelling = len(prompt.tokens) - local * self._block_tokens
            await asyncio.sleep(self.settings.seconds(travelling) / self._speed)
            await peer.ask(address, "/sim/kv/release", {"name": name})
        except peer.PeerRefused:
            self._failed(answer)
            return
        except peer.PeerGone:
            more = 0.0 if self.settings.connector == "nixl" else self.settings.abort_seconds
            await asyncio.sleep(self.settings.dead_peer_seconds + more)
            self._failed(answer)
            return
        wanted = list(keys)
        rest = prompt.tokens[len(keys) * self._block_tokens :]
        if rest:
            wanted.append(chained(keys[-1] if keys else 0, rest))
        wrong = found["contents"][local : len(wanted)] != wanted[local:]
        self.pulled_total += 1
        if wrong:
            self.wrong_total += 1
            self._spoilt.update(keys[local:])
        self._pulls.pop(answer, None)
        self._starter.start(answer, pulled=len(prompt.tokens), wrong=wrong)

    def _failed(self, answer: Answer) -> None:
        """Nothing was pulled: compute the prompt here, or say so, as the policy wants."""
        self.failed_total += 1
        self._pulls.pop(answer, None)
        if self.settings.recompute:
            self._starter.start(answer)
        else:
            answer.fail(Broken(_FAILED))


def _is_blocks(value: list[Any]) -> bool:
    return bool(value) and isinstance(value[0], list) and all(isinstance(number, int) for number in value[0])
