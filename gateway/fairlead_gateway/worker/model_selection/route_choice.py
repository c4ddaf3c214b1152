"""The model behind a route's name, for one request."""

from typing import Final

from fairlead.fleet.model import Fleet
from fairlead.routes.resolution import RequestFacts, RouteDecision, RouteTable
from fairlead_gateway.errors import RouteWithoutTarget
from fairlead_gateway.http.listener import HttpRequest
from fairlead_gateway.routing.prefix.media_parts import estimated_tokens
from fairlead_gateway.routing.prefix.prefix_hash import BYTES_PER_TOKEN
from fairlead_gateway.worker.model_selection.conversation import prompt_digest, session_digest, text_digest
from fairlead_gateway.worker.openai.body_parser import ParsedBody
from fairlead_gateway.worker.openai.model_names import ModelEntry

_SESSION_HEADER: Final = b"x-session-id"
BY_SESSION: Final = "session"
BY_PROMPT: Final = "conversation"


class HttpRequestFacts(RequestFacts):
    """The facts about a request of a client that decide."""

    def __init__(self, http_request: HttpRequest, parsed: ParsedBody) -> None:
        self._http_request = http_request
        self._parsed = parsed

    def header(self, name: str) -> str | None:
        """Returns the value of a header; None without it."""
        value = self._http_request.head.get(name.encode())
        return None if value is None else value.decode("latin-1")

    def tenant(self) -> str | None:
        """Returns the name of the tenant; None without one."""
        caller = self._http_request.caller
        return None if caller is None else caller.name

    def conversation(self) -> tuple[bytes, str]:
        """Returns what identifies the conversation, and the name of its source."""
        parsed, http_request = self._parsed, self._http_request
        session = http_request.head.get(_SESSION_HEADER)
        if not session and parsed.has_session_id and parsed.session:
            session = parsed.session.encode("utf-8", "surrogatepass")
        if session:
            return session_digest(session, self.tenant()), BY_SESSION
        if parsed.messages_end:
            return prompt_digest(http_request.body, parsed.messages_start, parsed.messages_end), BY_PROMPT
        fields = None if parsed.is_passthrough else parsed.fields(http_request.body)
        return text_digest(fields, http_request.body), BY_PROMPT

    def prompt_tokens(self) -> int:
        """Returns the tokens of the body, by its text and its other parts.

        Why the whole body: tools and schemas are a part of the prompt.
        """
        body = self._http_request.body
        # A scanned chat has text only.
        return len(body) // BYTES_PER_TOKEN if self._parsed.decoded_fields is None else estimated_tokens(body)

    def answer_limit(self) -> int | None:
        """Returns the client's limit of the answer in tokens; None without one."""
        limit = self._parsed.max_tokens
        return None if limit is None else int(limit)


def fallback_entry(decision: RouteDecision, fleet: Fleet) -> ModelEntry:
    """Returns the model of a request's last fallback.

    Raises RouteWithoutTarget if the model has left the fleet.
    """
    key = decision.steps[-1].model
    model = fleet.models.get(key)
    if model is None:
        raise RouteWithoutTarget("model: the fallback that this route has chosen is not served", param="model")
    return ModelEntry(key, model)


def choose_entry(
    routes: RouteTable,
    http_request: HttpRequest,
    parsed: ParsedBody,
    fleet: Fleet,
    names: dict[str, ModelEntry] | None = None,
) -> tuple[ModelEntry, RouteDecision] | None:
    """Returns the model that a route chooses, and how; None if the request names no route.

    names: the fleet's `client_names`, if they are known.
    Raises RouteWithoutTarget if the route has none, or the target is not served.
    """
    decision = routes.resolve(parsed.model, HttpRequestFacts(http_request, parsed))
    if decision is None:
        return None
    if decision.target is None:
        raise RouteWithoutTarget("model: no target of this route has a weight above 0", param="model")
    entry = None if names is None else names.get(decision.target)
    if entry is not None and entry.key == decision.target:  # else the name is of another model or an adapter
        return entry, decision
    model = fleet.models.get(decision.target)
    if model is None:
        error = RouteWithoutTarget("model: the target that this route has chosen is not served", param="model")
        error.route = decision
        raise error
    return ModelEntry(decision.target, model), decision
