"""What an operator does to an engine over HTTP: sleep, pause, reset, abort, adapters."""

import msgspec

from fairlead_sim.server.app import Call
from fairlead_sim.server.fields import Fields, json_body
from fairlead_sim.server.info import answer
from fairlead_sim.server.problems import Broken, Finding, Malformed
from fairlead_sim.server.slumber import PARTS

MODES = ("abort", "wait", "keep")


def is_sleeping(call: Call) -> None:
    """Asleep at any level?"""
    answer(call, {"is_sleeping": call.engine.slumber.level is not None})


def sleep(call: Call) -> None:
    """``?level=0|1|2&mode=abort|wait``: new requests hang until ``/wake_up``; from level 1 on the cache is lost."""
    level = _integer(call, "level", 1, 2)
    mode = _mode(call, "abort")
    call.engine.sleep(level, mode, lambda: answer(call, {"status": "sleeping", "level": level}))


def wake_up(call: Call) -> None:
    """``?tags=weights|kv_cache``: that part is back, without it all are, and the engine with the last of them."""
    tags = call.request.query.get("tags")
    parts = PARTS if tags is None else frozenset({tags})
    body = {"status": "awake", "tags": None if tags is None else [tags]}
    call.engine.slumber.wake(parts, lambda: answer(call, body))


def is_paused(call: Call) -> None:
    """True while sleeping, too."""
    answer(call, {"is_paused": call.engine.paused})


def pause(call: Call) -> None:
    """``?mode=abort|wait|keep&clear_cache=…``."""
    engine = call.engine
    mode = _mode(call, "abort")
    clear = _flag(call, "clear_cache", default=True)

    def paused() -> None:
        if clear:
            engine.reset_prefix_cache()
        answer(call, {"status": "paused"})

    engine.pause(mode, paused)


def resume(call: Call) -> None:
    """Go on after ``/pause``."""
    call.engine.resume()
    answer(call, {"status": "resumed"})


def reset_prefix_cache(call: Call) -> None:
    """200 in any case: the body says whether it was done."""
    preempt = _flag(call, "reset_running_requests", default=False)
    answer(call, {"success": call.engine.reset_prefix_cache(preempt_running=preempt)})


def abort_requests(call: Call) -> None:
    """End requests by id. Unknown ids count as aborted, as in the real engine."""
    fields = Fields(json_body(call.request))
    names = fields.strings("request_ids")
    fields.check()
    call.engine.abort_answers(set(names))
    answer(call, {"status": "aborted", "aborted": len(names)})


def collective_rpc(call: Call) -> None:
    """``reload_weights`` is the one method that a worker here has."""
    fields = Fields(json_body(call.request))
    fields.required("method")
    method = fields.text("method")
    fields.check()
    if method == "reload_weights":
        call.engine.slumber.reload(lambda: answer(call, {"results": [None]}))
        return
    raise Broken(
        f"Call to collective_rpc method failed: Worker failed with error ''CPUWorker' object has no attribute '{method}'', "
        "please check the stack trace above for the root cause",
        bare=True,
    )


def load_adapter(call: Call) -> None:
    """``/v1/load_lora_adapter``."""
    call.reply.send(200, call.engine.models.load(Fields(json_body(call.request))).encode(), None)


def unload_adapter(call: Call) -> None:
    """``/v1/unload_lora_adapter``."""
    call.reply.send(200, call.engine.models.unload(Fields(json_body(call.request))).encode(), None)


def adapters(call: Call) -> None:
    """The adapters loaded now."""
    loaded = call.engine.models.adapters
    call.reply.send(200, msgspec.json.encode([{"name": each.name, "path": each.path} for each in loaded]))


def _integer(call: Call, name: str, default: int, most: int) -> int:
    text = call.request.query.get(name)
    if text is None:
        return default
    where = f"query.{name}"
    try:
        value = int(text)
    except ValueError:
        message = "Input should be a valid integer, unable to parse string as an integer"
        raise Malformed([Finding("int_parsing", where, message, text)]) from None
    if value < 0:
        raise Malformed([Finding("greater_than_equal", where, "Input should be greater than or equal to 0", text)])
    if value > most:
        raise Malformed([Finding("less_than_equal", where, f"Input should be less than or equal to {most}", text)])
    return value


def _mode(call: Call, default: str) -> str:
    mode = call.request.query.get("mode", default)
    if mode not in MODES:
        wanted = "'abort', 'wait' or 'keep'"
        raise Malformed([Finding("literal_error", "query.mode", f"Input should be {wanted}", mode)])
    return mode


def _flag(call: Call, name: str, *, default: bool) -> bool:
    text = call.request.query.get(name)
    if text is None:
        return default
    word = text.lower()
    if word in ("true", "1", "yes", "on", "t", "y"):
        return True
    if word in ("false", "0", "no", "off", "f", "n"):
        return False
    message = "Input should be a valid boolean, unable to interpret input"
    raise Malformed([Finding("bool_parsing", f"query.{name}", message, text)])
