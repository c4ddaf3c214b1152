"""The handlers of the OpenAI endpoints that generate: chat and plain completions."""

from fairlead_sim.server import chat, completions
from fairlead_sim.server.app import Call
from fairlead_sim.server.fields import Fields, json_body
from fairlead_sim.server.problems import NotServed


def fresh_id(call: Call) -> str:
    """16 hex digits, the second half of a UUID as everywhere in vLLM."""
    return f"{call.engine.random.getrandbits(62) | 1 << 63:016x}"


def chat_completions(call: Call) -> None:
    """``/v1/chat/completions``."""
    engine = call.engine
    _generates(call)
    fields = Fields(json_body(call.request))
    ask = chat.read(fields, call.request, fresh_id(call), engine.frontend)
    engine.begin(ask, chat.ChatStream if ask.stream else chat.WholeChat, call.reply, call.fault)


def plain_completions(call: Call) -> None:
    """``/v1/completions``."""
    engine = call.engine
    _generates(call)
    fields = Fields(json_body(call.request))
    ask = completions.read(fields, call.request, fresh_id(call), engine.frontend)
    kind = completions.CompletionStream if ask.stream else completions.WholeCompletion
    engine.begin(ask, kind, call.reply, call.fault)


def _generates(call: Call) -> None:
    if call.engine.settings.task == "embed":
        raise NotServed
