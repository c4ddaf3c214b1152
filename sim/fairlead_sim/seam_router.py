"""The gateway's router behind the words of the routing seam (docs/reference/seams.md): it translates, every choice is the core's."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from xxhash import xxh3_64_intdigest

from fairlead.errors import BadInput
from fairlead.fleet import Instance, Model, Objectives
from fairlead.profile import EngineProfile, preset
from fairlead_gateway.routing import ModelRouter, RouteRequest
from fairlead_sim.seam_silence import Silence
from fairlead_sim.seam_view import EndpointView
from fairlead_sim.seam_words import amount, moment, name_of, number, read, several
from fairlead_sim.trace_prompts import trace_chain
from fairlead_sim.traces import TRACE_BLOCK_TOKENS

NAMESPACE = "seam"
MODEL = "model"


class SeamRouter:
    """The gateway's router behind the protocol's words. Equal seeds give equal homes, so several of them act as one. ``now`` is
    seconds and counts are of tokens; what is neither is told by name, so they are ``Any`` to the compiler."""

    def __init__(self, info: Any, *, preset: str, seed: int) -> None:
        objectives = Objectives(
            ttft_seconds=amount(info, "ttft_slo", "info") or None,
            ttft_per_kilo_token_seconds=amount(info, "ttft_slo_per_kilo_token", "info") or 0.0,
        )
        self._model = Model(NAMESPACE, MODEL, objectives, preset)
        self._block_tokens = _hint(info, "block_tokens", TRACE_BLOCK_TOKENS)
        self._profile = _profile(info)
        self._secret = f"seam {seed}".encode()
        self._view = EndpointView(self._profile.prefill_token_seconds, self._block_tokens)
        self._router = ModelRouter(
            secret=self._secret, seed=seed, load=self._view.load, knows=lambda request: self._view.matched(request.id)
        )
        self._epoch = 0
        self._ids: dict[str, Any] = {}  # the core's names are text; the tool's may be numbers
        self._where: dict[str, str] = {}  # request → endpoint, while it is in flight
        self._cached: dict[str, int] = {}
        self._silence = Silence()
        self._away: dict[
            str, tuple[str, ...]
        ] = {}  # endpoints not offered now → what was in flight there when they went
        live = read(info, "live")
        self._update(() if live is None else several(live, "info.live"))

    def pick(self, request: Any, endpoints: Any, now: Any) -> Any:
        """The endpoint that the request goes to, which is then taken as sent; None when there is none. Raises BadInput where a field
        is missing or no number, with its name."""
        now = moment(now)
        blocks = _blocks(request)
        asked = self._request(request, blocks)
        self._assume(now)
        offered = self._offered(endpoints, now)
        self._view.asked(asked.id, blocks, now)
        decision = self._router.decide(asked, now, excluded=frozenset(self._ids.keys() - offered.keys()))
        if decision.chosen is None:
            return None
        self._router.dispatched(asked, decision.chosen, now)
        self._view.sent(asked.id, decision.chosen, blocks, now)
        self._where[asked.id] = decision.chosen
        self._cached.pop(asked.id, None)
        self._silence.sent(asked.id, now)
        return self._ids[decision.chosen]

    def on_first_token(self, request: Any, endpoint: Any, now: Any, cached_tokens: Any = None) -> None:
        """The endpoint answered; ``cached_tokens`` is what its engine reported."""
        name, now, cached = name_of(request, "request"), moment(now), _whole(cached_tokens, "cached_tokens")
        if self._where.get(name) == str(endpoint):
            self._router.first_token(name, now)
            self._view.answered(name)
            self._silence.began(name, now)
            if cached is not None:
                self._cached[name] = cached

    def on_complete(self, request: Any, endpoint: Any, now: Any, output_tokens: Any = None) -> None:
        """The answer is complete."""
        name, now, told = name_of(request, "request"), moment(now), _whole(output_tokens, "output_tokens")
        self._silence.ended()
        if self._where.get(name) == str(endpoint):
            self._over(name, now, told)

    def on_endpoints(self, live_ids: Any, now: Any) -> None:
        """The set in service changed; what was in flight on an endpoint that left is not counted any more."""
        now = moment(now)
        before = set(self._ids)
        self._update(several(live_ids, "live"))
        for name in before - self._ids.keys():
            self._view.left(name)
            self._away.pop(name, None)
        self._lose([name for name, where in self._where.items() if where not in self._ids], now)

    def _over(self, name: str, now: float, output_tokens: int | None) -> None:
        del self._where[name]
        self._view.ended(name, now)
        self._router.finished(name, now, cached_tokens=self._cached.pop(name, None), output_tokens=output_tokens)

    def _lose(self, names: Iterable[str], now: float) -> None:
        for name in names:
            del self._where[name]
            self._cached.pop(name, None)
            self._view.ended(name, now)
            self._router.abandoned(name, now)

    def _assume(self, now: float) -> None:
        """What a tool that tells no ends leaves open is over after a while."""
        for name in self._silence.over(now):
            if name in self._where:
                self._over(name, now, None)
        self._view.deaf = self._silence.deaf

    def _offered(self, endpoints: Any, now: float) -> Mapping[str, Any]:
        """Those that may be chosen, by name; new ones are known from now on."""
        named = [(name_of(item, "endpoint"), item) for item in several(endpoints, "endpoints")]
        offered = {name: item for name, item in named if read(item, "up") is not False}
        new = [read(item, "id") for name, item in offered.items() if name not in self._ids]
        if new:
            self._update([*self._ids.values(), *new])
        self._view.look(offered)
        if self._away or len(offered) < len(self._ids):
            self._follow(offered, now)
        return offered

    def _follow(self, offered: Mapping[str, Any], now: float) -> None:
        """Of an endpoint that was away and comes back with less in flight than was sent there, what it had then is lost: the tool
        need not call ``on_endpoints``."""
        for name in self._away.keys() & offered.keys():
            before = self._away.pop(name)
            told = amount(offered[name], "inflight", "endpoint")
            if told is not None and told < sum(where == name for where in self._where.values()):
                self._lose([request for request in before if self._where.get(request) == name], now)
        gone = self._ids.keys() - offered.keys() - self._away.keys()
        if gone:
            there: dict[str, list[str]] = {name: [] for name in gone}
            for request, where in self._where.items():
                if where in gone:
                    there[where].append(request)
            self._away.update({name: tuple(requests) for name, requests in there.items()})

    def _update(self, live: Iterable[Any]) -> None:
        ids: dict[str, Any] = {}
        for raw in live:
            if ids.setdefault(str(raw), raw) != raw:
                raise BadInput(f"live: two endpoints are called {raw}, once as text and once as a number", field="live")
        self._ids = ids
        self._epoch += 1
        instances = [
            Instance(id=name, namespace=NAMESPACE, model=MODEL, pool="seam", url="", profile=self._profile)
            for name in sorted(self._ids)
        ]
        self._router.update(self._model, instances, self._epoch)

    def _request(self, request: Any, blocks: Iterable[Any]) -> RouteRequest:
        name, session = name_of(request, "request"), read(request, "session")
        tokens = amount(request, "prompt_tokens", "request")
        if tokens is None:
            said = "request.prompt_tokens: it must be a number of tokens, 0 or more"
            raise BadInput(said, field="request.prompt_tokens")
        chain = trace_chain(
            [_number(block) for block in blocks],
            tokens,
            secret=self._secret,
            seed=self._model.key.encode(),
            block_tokens=self._block_tokens,
        )
        return RouteRequest(name, chain, tokens, session=None if session is None else str(session))


class HoldingSeamRouter(SeamRouter):
    """Of a preset that wants requests to be held before engines and released in its order."""

    def order_key(self, request: Any) -> tuple[float, float, str]:
        """Of requests held for one endpoint the smallest goes first."""
        return self._router.order(name_of(request, "request"))

    def rebalance(self, endpoints: Any, now: Any) -> list[tuple[Any, Any]]:
        """Which of the requests in ``endpoint.held`` go to another endpoint (request, endpoint id). They count there at once. Who
        tells only how many are held, or nothing, gets none to move."""
        now = moment(now)
        offered = self._offered(endpoints, now)
        requests = {name: {name_of(one, "request"): one for one in _held(item)} for name, item in offered.items()}
        known = {name: one for held in requests.values() for name, one in held.items()}
        moved = []
        for name, to in self._router.rebalance({place: tuple(held) for place, held in requests.items()}, now):
            self._view.sent(name, to, _blocks(known[name]), now)
            self._where[name] = to
            moved.append((known[name], self._ids[to]))
        return moved


def _number(block: Any) -> int:
    """A block's hash as a number, however the tool writes it."""
    return block if isinstance(block, int) else xxh3_64_intdigest(str(block).encode())


def _blocks(request: Any) -> tuple[Any, ...]:
    told = read(request, "blocks")
    return () if told is None else tuple(several(told, "request.blocks"))


def _held(endpoint: Any) -> Iterable[Any]:
    told = read(endpoint, "held")
    return () if told is None or isinstance(told, int) else several(told, "endpoint.held")


def _whole(value: Any, field: str) -> int | None:
    """None where nobody can have counted it."""
    counted = -1.0 if value is None else number(value, field)
    return int(counted) if 0.0 <= counted < math.inf else None


def _hint(info: Any, name: str, usual: int) -> int:
    """``usual`` where it is missing, or nothing that an engine could have."""
    return int(amount(info, name, "info") or 0.0) or usual


def _profile(info: Any) -> EngineProfile:
    """The hints as an engine profile; what is not hinted is a current engine's."""
    usual = preset("h100-llama8b")
    return EngineProfile(
        name="seam",
        prefill_token_seconds=amount(info, "prefill_s_per_token", "info") or usual.prefill_token_seconds,
        kv_tokens=_hint(info, "kv_tokens", usual.kv_tokens),
        max_sequences=_hint(info, "max_seqs", usual.max_sequences),
        step_tokens=_hint(info, "step_tokens", usual.step_tokens),
    )
