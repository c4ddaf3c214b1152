"""The handlers of the OpenAI endpoints that generate: chat and plain completions."""

from fairlead_sim.api import chat, completions
from fairlead_sim.api.app import RequestContext
from fairlead_sim.http.errors import RouteNotFound
from fairlead_sim.http.fields import RequestFields, json_body


def new_request_id(call: RequestContext) -> str:
    """16 hex digits, the second half of a UUID as everywhere in vLLM."""
    return f"{call.engine.random.getrandbits(62) | 1 << 63:016x}"


def chat_completions(call: RequestContext) -> None:
    """``/v1/chat/completions``."""
    engine = call.engine
    _require_generation(call)
    fields = RequestFields(json_body(call.request))
    ask = chat.parse_chat_request(fields, call.request, new_request_id(call), engine.prompt_parser)
    engine.begin(ask, chat.ChatCompletionStream if ask.stream else chat.ChatCompletion, call.writer, call.fault)


def text_completions(call: RequestContext) -> None:
    """``/v1/completions``."""
    engine = call.engine
    _require_generation(call)
    fields = RequestFields(json_body(call.request))
    ask = completions.parse_completion_request(fields, call.request, new_request_id(call), engine.prompt_parser)
    kind = completions.TextCompletionStream if ask.stream else completions.TextCompletion
    engine.begin(ask, kind, call.writer, call.fault)


def _require_generation(call: RequestContext) -> None:
    if call.engine.settings.task == "embed":
        raise RouteNotFound
