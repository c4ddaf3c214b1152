"""The fleet simulator: the production router in front of simulated engines, on a virtual clock.

Open loop: requests arrive when the trace says, whatever the engines do. The router is the class that the gateway runs, told what
the gateway would be told, when it would be told: dispatch at the arrival, the first token and the end when their steps end.
"""

from collections.abc import Callable, Mapping, Sequence

from fairlead.errors import BadInput
from fairlead.fleet import Instance, Model, Objectives
from fairlead.profile import EngineProfile
from fairlead_gateway.routing import ModelRouter, PrefixChain, RouteRequest
from fairlead_gateway.routing.ledger import InstanceLoad
from fairlead_sim.blocks import KvEvent
from fairlead_sim.course import Course
from fairlead_sim.engine import Sequence as EngineSequence
from fairlead_sim.holding import Sending
from fairlead_sim.served import Served
from fairlead_sim.trace_prompts import Prompts, trace_chain
from fairlead_sim.traces import TraceRequest

__all__ = ["MODEL", "NAMESPACE", "OneRouter", "Served", "instances_of", "made_up_chain", "simulate"]

MODEL = "sim"
NAMESPACE = "default"


def made_up_chain(request: TraceRequest, *, secret: bytes, seed: bytes) -> PrefixChain:
    """The chain of a prompt of which only block ids are known."""
    return trace_chain(request.blocks, request.prompt_tokens, secret=secret, seed=seed)


def instances_of(names: Sequence[str], profile: EngineProfile) -> list[Instance]:
    """Equal engines as a router sees them."""
    return [Instance(id=name, namespace=NAMESPACE, model=MODEL, pool="sim", url="", profile=profile) for name in names]


def simulate(
    requests: Sequence[TraceRequest],
    *,
    profile: EngineProfile,
    engines: int,
    preset: str,
    objectives: Objectives,
    block_tokens: int,
    secret: bytes,
    seed: int,
    instance_ids: Sequence[str] | None = None,
    chain: Callable[[TraceRequest], PrefixChain] | None = None,
    choices: Mapping[str, str] | None = None,
    hearing_seconds: float = 0.0,
    prompts: Prompts | None = None,
) -> list[Served]:
    """Every request served by ``engines`` equal engines under one routing preset, in the order given.

    ``instance_ids`` name the engines as the router sees them; homes depend on names. ``chain`` replaces the made-up prefix
    chain where the prompts' real text is known: with both, homes are the very ones that a live gateway computes.
    ``choices`` (request id → instance id) overrule the router: what the same engines make of decisions taken elsewhere.
    The router hears of first tokens and ends ``hearing_seconds`` after they happened, as a gateway does. ``prompts`` may be
    shared by simulations of the same requests.
    """
    names = [f"sim-{index}/0/0" for index in range(engines)] if instance_ids is None else list(instance_ids)
    if not names or len(names) != engines or len(set(names)) != engines:
        raise BadInput(f"{engines} engines need as many different instance ids", field="engines")
    model = Model(NAMESPACE, MODEL, objectives, preset)
    router = ModelRouter(secret=secret, seed=seed)
    router.update(model, instances_of(names, profile), 1)
    if prompts is None:
        prompts = Prompts(block_tokens, secret=secret, seed=model.key.encode())
    front = OneRouter(router, chain or prompts.chain, choices or {}, model, profile)
    course = Course(front, names, profile, block_tokens=block_tokens, hearing_seconds=hearing_seconds, prompts=prompts)
    return course.serve(requests)


class OneRouter:
    """One router that sees everything that is sent. ``on_home`` counts the requests that went to one of their homes. ``at_once``:
    nothing is held before engines, whatever the preset wants."""

    def __init__(
        self,
        router: ModelRouter,
        chain: Callable[[TraceRequest], PrefixChain],
        choices: Mapping[str, str],
        model: Model,
        profile: EngineProfile,
        *,
        at_once: bool = False,
    ) -> None:
        self._at_once = at_once
        self._model = model
        self._profile = profile
        self._epoch = 1
        self._router = router
        self._chain = chain
        self._choices = choices
        self._sending: Sending | None = None
        self._course: Course | None = None
        self._cut: frozenset[str] = frozenset()
        self.on_home = 0

    def begin(self, course: Course) -> None:
        """From now on requests may be held."""
        self._course = course
        self._sending = Sending(self._router, self._profile, course.send, course.later, at_once=self._at_once)

    def arrive(self, request: TraceRequest, now: float) -> tuple[str | None, str]:
        """As the router decides, or as was decided elsewhere."""
        asked = RouteRequest(
            request.id, self._chain(request), request.prompt_tokens, request.output_tokens, request.session
        )
        decision = self._router.decide(asked, now, excluded=self._cut)
        chosen = self._choices.get(request.id, decision.chosen)
        if chosen is None:
            return None, decision.reason
        self.on_home += bool(decision.home)
        return self._there().dispatched(asked, chosen, now), ""

    def refused(self, request: str, now: float) -> None:
        """Its load is gone at once."""
        self.lost(request, now)

    def first_token(self, request: str, now: float) -> None:
        """Its prefill is before nobody any more."""
        self._there().first_token(request, now)

    def finished(self, sequence: EngineSequence, now: float) -> None:
        """With what an engine reports."""
        self._there().finished(sequence, now)

    def told(self, instance: str, events: Sequence[KvEvent], now: float) -> None:
        """Nobody listens."""

    def members(self, live: Sequence[str], now: float) -> None:
        """As a watch tells it. What was held for an engine that left is asked anew."""
        self._epoch += 1
        self._router.update(self._model, instances_of(live, self._profile), self._epoch)
        if self._course is not None:
            for request in self._there().left(live, now):
                self._course.again(request, now)

    def lost(self, request: str, now: float) -> None:
        """Its load is gone at once."""
        self._there().over(request, now)

    def unreachable(self, names: frozenset[str], now: float) -> None:
        """The gateway does not reach these engines from now on, and no others: what it has there without a first token arrives
        anew, the other answers are cut."""
        self._cut = names
        assert self._course is not None
        reached = [place.id for place, _ in self._router.standing() if place.id not in names]
        kept = self._there().left(reached, now)
        sent = [one.request.id for one in self._course.flights() if not one.ended and one.instance in names]
        for request in (*kept, *sent):
            self.lost(request, now)
            self._course.again(request, now)

    def loads(self) -> Mapping[str, InstanceLoad]:
        """What the router counts as sent and not over."""
        return self._router.loads()

    def cut_of(self, request: str) -> frozenset[str]:
        """The engines that are out of reach."""
        del request
        return self._cut

    def _there(self) -> Sending:
        assert self._sending is not None, "nothing is sent before the course begins"
        return self._sending
