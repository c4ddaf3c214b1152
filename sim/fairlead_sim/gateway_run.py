"""One run of one gateway in the fleet simulator: the production router, the pure cores around it, and what it keeps before engines.

As a live one (``berths``) it keeps a request for the sake of what it sent itself alone, and moves nothing to another engine. Who
tells it what, and when, is the business of ``gateways``.
"""

from array import array
from bisect import bisect_left
from collections.abc import Sequence
from typing import TYPE_CHECKING

import xxhash

from fairlead.limits import Limits
from fairlead_gateway.others_row import OthersRow
from fairlead_gateway.routing import ModelRouter, PrefixChain, RouteRequest
from fairlead_gateway.routing.hotness import HotPrefixes
from fairlead_gateway.routing.prefix import block_ends
from fairlead_gateway.routing.shared import SharedRows, Siblings, bytes_of
from fairlead_kvstore.exchange.outgoing import Outgoing
from fairlead_kvstore.exchange.peers import Peers
from fairlead_kvstore.exchange.records import Batch, Load, Sent
from fairlead_kvstore.links.bridge import Bridge
from fairlead_kvstore.links.lesson import guessed
from fairlead_sim.engine import Sequence as EngineSequence
from fairlead_sim.fleet import MODEL, instances_of
from fairlead_sim.holding import Sending
from fairlead_sim.told_index import held_blocks
from fairlead_sim.trace_prompts import BYTES_PER_TOKEN, trace_keys
from fairlead_sim.traces import TraceRequest

if TYPE_CHECKING:
    from fairlead_sim.gateways import Gateways

_LIMITS = Limits()
_PRINT = b"one secret for all"


class GatewayRun:
    """``all_`` are the gateways that it is one of."""

    def __init__(self, all_: "Gateways", name: str) -> None:
        self.name = name
        self._all = all_
        self._slots = {engine: slot for slot, engine in enumerate(all_.engines)}
        cells = memoryview(bytearray(bytes_of(2, len(self._slots)))).cast("q")
        rows = SharedRows(cells, len(self._slots), 0)
        rows.place(self._slots)
        self._others = OthersRow(cells, len(self._slots), 1)
        self._others.place(self._slots)
        rows.read_rows([1])
        self.out = Outgoing(_PRINT, _LIMITS)
        self.peers = Peers(_PRINT, _LIMITS)
        self.count = HotPrefixes()
        self.bridge = Bridge(all_.model.key, all_.index.mirror, secret=all_.secret)
        self._flying: dict[str, tuple[str, int]] = {}
        self.leaving = False
        self.gone = False
        self.cut: frozenset[str] = frozenset()
        self._beaten = float("-inf")
        self.router = ModelRouter(
            secret=all_.secret,
            seed=0,
            siblings=Siblings(rows, self._sent, lambda *_: None, lambda *_: None),
        )
        self.router.update(all_.model, instances_of(all_.live, all_.profile), 1)
        self._sending = Sending(self.router, all_.profile, all_.send, all_.later, moving=False)

    def start(self, at: float, *, shares: bool) -> None:
        """Rounds begin."""
        knowledge = self._all.knowledge
        if shares and (knowledge.sent or knowledge.loads or knowledge.hot):
            self._all.later(at, self._tell)
        if knowledge.index:
            self._all.later(at, self._correct)

    def catch_up(self, now: float) -> None:
        """What Redis keeps is read back: what was sent, the table, and what engines hold."""
        for at, name, batch in self._all.stream:
            if now - at <= _LIMITS.sent_kept_seconds:
                self.hear(name, batch, now, live=False)
        if self._all.knowledge.hot and self._all.hot.epoch:
            self.router.hot(self._all.hot.epoch, self._all.hot.table)
        self.bridge.tell_all()

    # --- requests -------------------------------------------------------------------------------------------------------

    def arrive(self, request: TraceRequest, chain: PrefixChain, now: float) -> tuple[str | None, str]:
        """Choose, and send now or later."""
        pin = None
        if self._all.knowledge.pins and request.session is not None:
            pin = xxhash.xxh3_64_intdigest(request.session.encode())
        tokens, output = request.prompt_tokens, request.output_tokens
        asked = RouteRequest(request.id, chain, tokens, output, request.session, pin=pin)
        if self._all.knowledge.perfect:
            self._know(request, chain)
        decision = self.router.decide(asked, now, excluded=self.cut)
        chosen = self._all.choices.get(request.id, decision.chosen)
        if chosen is None:
            return None, decision.reason
        to = self._sending.dispatched(asked, chosen, now)
        if self._all.knowledge.index:
            self._link(request, chain, chosen, now)
        return to, ""

    def first_token(self, request: str, now: float) -> None:
        """Its engine may begin the next."""
        self._sending.first_token(request, now)

    def finished(self, sequence: EngineSequence, now: float) -> None:
        """With what an engine reports."""
        self._sending.finished(sequence, now)
        self._landed(sequence.id, now)

    def over(self, request: str, now: float) -> None:
        """It has no answer there: refused, or the engine is gone or out of reach."""
        self._sending.over(request, now)
        self._landed(request, now)

    def left(self, reached: Sequence[str], now: float) -> list[str]:
        """What was kept for engines that are not among these is to be chosen for anew."""
        kept = self._sending.left(reached, now)
        for request in kept:
            self._landed(request, now)
        return kept

    def _landed(self, request: str, now: float) -> None:
        sent = self._flying.pop(request, None)
        if sent is not None:
            self.bridge.ended(*sent, now)

    def _know(self, request: TraceRequest, chain: PrefixChain) -> None:
        keys = trace_keys(request.blocks, request.prompt_tokens, self._all.block_tokens)
        for name, core in self._all.cores().items():
            blocks = held_blocks(core, keys)
            held = bisect_left(chain.ends, blocks * self._all.block_tokens * BYTES_PER_TOKEN + 1)
            self.router.corrected(name, "all", (), [chain.hashes[:held]] if held else [])

    def _link(self, request: TraceRequest, chain: PrefixChain, chosen: str, now: float) -> None:
        block_tokens = self._all.block_tokens
        self._flying[request.id] = (chosen, chain.tail)
        self.bridge.sent(chosen, chain.tail, chain.hashes, now, ends_told=True)
        self.bridge.link(
            guessed(
                chain.hashes,
                chain.ends,
                trace_keys(request.blocks, request.prompt_tokens, block_tokens),
                size=request.prompt_tokens * BYTES_PER_TOKEN,
                tokens=request.prompt_tokens,
                block_size=block_tokens,
            )
        )

    # --- telling and hearing --------------------------------------------------------------------------------------------

    def _sent(self, model: str, request: RouteRequest, instance: str) -> None:
        knowledge, chain, pin = self._all.knowledge, request.chain, request.pin
        if knowledge.hot:
            self.count.observe(chain, len(self._slots))
        if knowledge.sent or knowledge.hot:
            self.out.sent(
                MODEL, instance, array("Q", chain.hashes).tobytes(), chain.tail, pin if isinstance(pin, int) else 0
            )

    def _tell(self, now: float) -> None:
        if self.gone:
            return
        loads: dict[str, Load] = {}
        if self._all.knowledge.loads:
            for name, load in self.router.loads().items():
                if load.inflight:
                    loads[name] = (load.inflight, load.waiting, load.backlog_seconds, load.inflight_tokens)
        beats = now - self._beaten >= _LIMITS.beat_seconds / 2
        if beats:
            self._beaten = now
        for model, batch in self.out.batches([MODEL], {MODEL: loads} if loads else {}, now, beats=beats):
            self.out.written(model, batch, now)
            self._all.tell(self, batch, now)
        if self.leaving and not any(load.inflight for load in self.router.loads().values()):
            for _, batch in self.out.farewell():
                self._all.tell(self, batch, now)
            self.gone = True
        else:
            self._all.later(now + self._all.knowledge.round_seconds, self._tell)
        self._settle(now)

    def hear(self, name: str, batch: Batch, now: float, *, live: bool) -> None:
        """Another gateway's batch."""
        knowledge = self._all.knowledge
        for item in self.peers.heard(MODEL, name, batch, now, live=live):
            self._take(item, now)
        if live and knowledge.loads:
            self._settle(now)

    def _take(self, item: Sent, now: float) -> None:
        knowledge = self._all.knowledge
        instance, packed, tail, pin = item
        hashes = tuple(array("Q", packed))
        chain = PrefixChain(hashes, block_ends(len(hashes)), tail)
        if knowledge.hot:
            self.count.observe(chain, len(self._slots))
        if knowledge.sent:
            self.router.heard(instance, chain, now, pin or None)
            if knowledge.index:
                self.bridge.sent(instance, tail, hashes, now, ends_told=False)

    def _settle(self, now: float) -> None:
        self.peers.expire(now)
        as_said = self._all.knowledge.as_said
        self._others.show(self.peers.loads() if as_said else self.peers.expected({MODEL: (self._all.live,)}))

    def _correct(self, now: float) -> None:
        if self.gone:
            return
        for one in self.bridge.corrections(now):
            held = [tuple(array("Q", chain)) for chain in one.held]
            self.router.corrected(one.instance, one.forget.value, array("Q", one.gone), held)
        self._all.later(now + _LIMITS.link_correction_seconds, self._correct)
