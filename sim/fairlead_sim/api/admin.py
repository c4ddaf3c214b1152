"""Management endpoints: sleep, pause, reset, abort and LoRA adapters."""

import msgspec

from fairlead_sim.api.app import RequestContext
from fairlead_sim.api.info import send_json
from fairlead_sim.http.errors import InternalError, MalformedRequest, ValidationFinding
from fairlead_sim.http.fields import RequestFields, json_body
from fairlead_sim.runtime.sleep_mode import MEMORY_PARTS

PAUSE_MODES = ("abort", "wait", "keep")


def is_sleeping(context: RequestContext) -> None:
    send_json(context, {"is_sleeping": context.engine.sleep_mode.level is not None})


def sleep(context: RequestContext) -> None:
    """Serves ``?level=0|1|2&mode=abort|wait``; new requests wait until ``/wake_up``."""
    level = _query_integer(context, "level", 1, 2)
    mode = _query_mode(context, "abort")
    context.engine.sleep(level, mode, lambda: send_json(context, {"status": "sleeping", "level": level}))


def wake_up(context: RequestContext) -> None:
    """Serves ``?tags=weights|kv_cache``: restores that part, or all without a tag."""
    tags = context.request.query.get("tags")
    parts = MEMORY_PARTS if tags is None else frozenset({tags})
    body = {"status": "awake", "tags": None if tags is None else [tags]}
    context.engine.sleep_mode.wake_up(parts, lambda: send_json(context, body))


def is_paused(context: RequestContext) -> None:
    """Serves ``/is_paused``, which is true while sleeping, too."""
    send_json(context, {"is_paused": context.engine.is_paused})


def pause(context: RequestContext) -> None:
    """Serves ``?mode=abort|wait|keep&clear_cache=…``; new requests wait until ``/resume``.

    The prefix cache is emptied by default, unless a sequence still runs.
    """
    engine = context.engine
    mode = _query_mode(context, "abort")
    clear = _query_flag(context, "clear_cache", default=True)

    def paused() -> None:
        if clear:
            engine.reset_prefix_cache()
        send_json(context, {"status": "paused"})

    engine.pause(mode, paused)


def resume(context: RequestContext) -> None:
    context.engine.resume()
    send_json(context, {"status": "resumed"})


def reset_prefix_cache(context: RequestContext) -> None:
    """Empties the prefix cache. Answers 200 in any case; the body says whether it succeeded."""
    preempt = _query_flag(context, "reset_running_requests", default=False)
    send_json(context, {"success": context.engine.reset_prefix_cache(preempt_running=preempt)})


def abort_requests(context: RequestContext) -> None:
    """Ends requests by id. Unknown ids count as aborted, as in the real engine."""
    fields = RequestFields(json_body(context.request))
    names = fields.strings("request_ids")
    fields.check()
    context.engine.abort_responses(set(names))
    send_json(context, {"status": "aborted", "aborted": len(names)})


def collective_rpc(context: RequestContext) -> None:
    """Serves ``reload_weights``, the only method of this worker."""
    fields = RequestFields(json_body(context.request))
    fields.require("method")
    method = fields.text("method")
    fields.check()
    if method == "reload_weights":
        context.engine.sleep_mode.reload_weights(lambda: send_json(context, {"results": [None]}))
        return
    raise InternalError(
        f"Call to collective_rpc method failed: Worker failed with error ''CPUWorker' object has no attribute '{method}'', "
        "please check the stack trace above for the root cause",
        bare=True,
    )


def load_adapter(context: RequestContext) -> None:
    """Loads an adapter; answers when that has taken its time, and requests may name it then."""
    engine = context.engine
    name = engine.models.begin_load(RequestFields(json_body(context.request)))

    def loaded() -> None:
        context.writer.send(200, engine.models.end_load(name).encode(), None)

    engine.call_after(engine.settings.adapter_load_seconds, loaded)


def unload_adapter(context: RequestContext) -> None:
    context.writer.send(200, context.engine.models.unload(RequestFields(json_body(context.request))).encode(), None)


def list_adapters(context: RequestContext) -> None:
    loaded = context.engine.models.adapters
    context.writer.send(200, msgspec.json.encode([{"name": adapter.name, "path": adapter.path} for adapter in loaded]))


def _query_integer(context: RequestContext, name: str, default: int, maximum: int) -> int:
    text = context.request.query.get(name)
    if text is None:
        return default
    where = f"query.{name}"
    try:
        value = int(text)
    except ValueError:
        message = "Input should be a valid integer, unable to parse string as an integer"
        raise MalformedRequest([ValidationFinding("int_parsing", where, message, text)]) from None
    if value < 0:
        raise MalformedRequest(
            [ValidationFinding("greater_than_equal", where, "Input should be greater than or equal to 0", text)]
        )
    if value > maximum:
        raise MalformedRequest(
            [ValidationFinding("less_than_equal", where, f"Input should be less than or equal to {maximum}", text)]
        )
    return value


def _query_mode(context: RequestContext, default: str) -> str:
    mode = context.request.query.get("mode", default)
    if mode not in PAUSE_MODES:
        expected = "'abort', 'wait' or 'keep'"
        raise MalformedRequest([ValidationFinding("literal_error", "query.mode", f"Input should be {expected}", mode)])
    return mode


def _query_flag(context: RequestContext, name: str, *, default: bool) -> bool:
    text = context.request.query.get(name)
    if text is None:
        return default
    word = text.lower()
    if word in ("true", "1", "yes", "on", "t", "y"):
        return True
    if word in ("false", "0", "no", "off", "f", "n"):
        return False
    message = "Input should be a valid boolean, unable to interpret input"
    raise MalformedRequest([ValidationFinding("bool_parsing", f"query.{name}", message, text)])
