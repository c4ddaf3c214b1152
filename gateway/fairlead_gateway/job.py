"""One request on its way through the rooms, with everything that has become known of it."""

from collections.abc import Callable
from typing import Final

from fairlead.decision import Decision
from fairlead.fleet import Instance
from fairlead_gateway.continuation import Said
from fairlead_gateway.handoff_plan import Handoff
from fairlead_gateway.handoff_story import HandoffStory
from fairlead_gateway.listen import Request
from fairlead_gateway.model import Ask
from fairlead_gateway.patience import Patience
from fairlead_gateway.queueing.gate import Asked, Release
from fairlead_gateway.reply import Reply
from fairlead_gateway.retry import Failure
from fairlead_gateway.routing import ModelRouter, RouteRequest
from fairlead_gateway.sse import Usage
from fairlead_gateway.steps import Trace

_NOBODY: Final[frozenset[str]] = frozenset()


class Job:
    """Filled from left to right: ``ask`` by model, ``route`` by prompt, the rest by route and forward. ``fingerprint`` is what the
    body is known by in quarantine; from then on the body may have been let go. ``asked`` is what it asked of the gate before engines,
    ``avoid`` the engines that had no room for it, ``release`` how it was let go where it was held. ``judged`` is the first choice of
    an engine, made before it is known who computes the prompt; whoever takes it makes it None. ``assigned`` is the engine at which
    it counts already, since it waited until that could begin."""

    __slots__ = (
        "ask",
        "asked",
        "assigned",
        "attempt",
        "avoid",
        "cached_tokens",
        "client_gone",
        "decision",
        "dispatched_at",
        "error",
        "events",
        "failures",
        "fingerprint",
        "first_at",
        "handed_over",
        "handoff",
        "id",
        "instance",
        "instance_id",
        "judged",
        "last_at",
        "output_tokens",
        "patience",
        "prompt_tokens",
        "release",
        "reply",
        "request",
        "route",
        "router",
        "said",
        "status",
        "story",
        "trace",
        "until",
    )

    def __init__(
        self,
        request: Request,
        reply: Reply,
        id: str,
        ask: Ask,
        route: RouteRequest,
    ) -> None:
        self.request = request
        self.reply = reply
        self.id = id
        self.ask = ask
        self.route = route
        self.router: ModelRouter | None = None
        self.instance: Instance | None = None
        self.instance_id: str = ""  # the instance's, empty without one
        self.decision: Decision | None = None
        self.attempt: int = 0
        self.judged: Decision | None = None
        self.failures: list[Failure] = []
        self.dispatched_at: float | None = None
        self.first_at: float | None = None
        self.last_at: float | None = None
        self.events: int = 0
        self.status: int = 0
        self.error: str | None = None
        self.prompt_tokens: int | None = None
        self.output_tokens: int | None = None
        self.cached_tokens: int | None = None
        self.client_gone: bool = False
        self.until: float | None = None
        self.patience: Patience | None = None
        self.said: Said | None = None
        self.handoff: Handoff | None = None
        self.story: HandoffStory | None = None
        self.handed_over: bool = False
        self.trace: Trace | None = None
        self.fingerprint: bytes | None = None
        self.asked: Asked | None = None
        self.assigned: str = ""
        self.avoid: frozenset[str] = _NOBODY
        self.release: Release | None = None

    def known_by(self, fingerprint: Callable[[bytes], bytes]) -> bytes:
        """The fingerprint of the body, whether or not that is still here."""
        return fingerprint(self.ask.body) if self.fingerprint is None else self.fingerprint

    def counted(self, usage: Usage | None) -> None:
        """Take what the engine counted, once: every look into a message costs more than it says. None: it did not tell."""
        if usage is None:
            self.prompt_tokens = self.output_tokens = self.cached_tokens = None
        else:
            self.prompt_tokens, self.output_tokens = usage.prompt_tokens, usage.completion_tokens
            self.cached_tokens = usage.cached_tokens
