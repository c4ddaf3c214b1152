"""The session of a request, as its client names it. The first of these counts:

1. the header `x-session-id`
2. the headers of coding agents: `x-claude-code-session-id`; `thread-id`, `session-id` and
   `session_id` of Codex; `x-session-affinity`. An agent that another one has started counts by
   itself: `x-claude-code-agent-id` is a part of the name, and Codex gives it another `thread-id`.
3. the field `session_id`
4. the field `prompt_cache_key`
5. what names a user: `metadata.user_id` of messages, `user`, `safety_identifier`

A stored response that the request continues (`response_ids`) decides before all of them. Names of
users stand for many conversations, so they never hold a request at an instance. Only the preset
`session` uses them. A request without a name is recognised by its prefix.
"""

from typing import Final

from fairlead_gateway.http.request_parser import AGENT_HEADER, SESSION_HEADERS, RequestHead
from fairlead_gateway.openai.body_parser import ModelRequest

_MAX_CHARACTERS: Final = 256
# Why constants: compiled code reads those of its own module directly, and looks up others.
_SESSION_HEADERS: Final = SESSION_HEADERS
_AGENT_HEADER: Final = AGENT_HEADER


def session_name(request: ModelRequest, head: RequestHead) -> tuple[str | None, bool]:
    """Returns the client's name, and whether it stands for one conversation alone.

    Why not of a user: a user has many conversations, and some clients send the same name with every
    request.
    """
    value = head.first_rare(_SESSION_HEADERS)
    if value is not None:
        agent = head.get_rare(_AGENT_HEADER)
        return (value if agent is None else value + b" " + agent).decode("latin-1")[:_MAX_CHARACTERS], True
    text = request.session
    return (text[:_MAX_CHARACTERS], request.has_session_id) if text else (None, False)
