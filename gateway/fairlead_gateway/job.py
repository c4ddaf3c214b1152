"""One request on its way through the rooms, with everything that has become known of it."""

from dataclasses import dataclass, field

from fairlead.decision import Decision
from fairlead.fleet import Instance
from fairlead_gateway.continuation import Said
from fairlead_gateway.handoff_plan import Handoff
from fairlead_gateway.handoff_story import HandoffStory
from fairlead_gateway.listen import Request
from fairlead_gateway.model import Ask
from fairlead_gateway.patience import Patience
from fairlead_gateway.reply import Reply
from fairlead_gateway.retry import Failure
from fairlead_gateway.routing import ModelRouter, RouteRequest
from fairlead_gateway.sse import Usage
from fairlead_gateway.steps import Trace


@dataclass(slots=True)
class Job:
    """Filled from left to right: ``ask`` by model, ``route`` by prompt, the rest by route and forward. ``fingerprint`` is what the
    body is known by in quarantine; from then on the body may have been let go."""

    request: Request
    reply: Reply
    id: str
    ask: Ask
    route: RouteRequest
    router: ModelRouter | None = None
    instance: Instance | None = None
    decision: Decision | None = None
    attempt: int = 0
    failures: list[Failure] = field(default_factory=list)
    dispatched_at: float | None = None
    first_at: float | None = None
    last_at: float | None = None
    events: int = 0
    status: int = 0
    error: str | None = None
    usage: Usage | None = None
    client_gone: bool = False
    until: float | None = None
    patience: Patience | None = None
    said: Said | None = None
    handoff: Handoff | None = None
    story: HandoffStory | None = None
    handed_over: bool = False
    trace: Trace | None = None
    fingerprint: bytes | None = None
