"""``/sim/…``: the engine's state for tests, and faults on demand."""

from dataclasses import asdict
from typing import Any

from fairlead.errors import BadInput
from fairlead_sim.api.app import RequestContext
from fairlead_sim.api.info import send_json
from fairlead_sim.http.errors import InvalidRequest
from fairlead_sim.http.fields import json_body
from fairlead_sim.runtime import fault_injection


def show_state(context: RequestContext) -> None:
    engine, app = context.engine, context.app
    ranks = [driver.core.stats for driver in engine.drivers]
    body: dict[str, Any] = {
        "running": sum(rank.running for rank in ranks),
        "waiting": sum(rank.waiting for rank in ranks),
        "held": engine.unfinished - sum(driver.unfinished for driver in engine.drivers),
        "inside": len(engine.responses),
        "connections": len(app.connections),
        "requests_seen": app.requests_seen,
        "draining": engine.is_draining,
        "requests_while_draining": app.requests_while_draining,
        "paused": engine.is_paused,
        "sleep_level": engine.sleep_mode.level,
        "given_up_seconds": sum(driver.skipped_seconds for driver in engine.drivers),
        "ranks": [asdict(rank) for rank in ranks],
        "faults": engine.fault_injector.armed_faults(),
        "kv_transfer": None if engine.kv_connector is None else engine.kv_connector.state(),
    }
    send_json(context, body)


def show_faults(context: RequestContext) -> None:
    """Sends the armed faults, and the names of all kinds of fault."""
    send_json(context, {"armed": context.engine.fault_injector.armed_faults(), "kinds": fault_injection.FAULT_KINDS})


def arm_faults(context: RequestContext) -> None:
    """Arms one fault or a list of them, and sends what ``show_faults`` sends."""
    body = json_body(context.request)
    try:
        armed = [fault_injection.fault_from_mapping(item) for item in (body if isinstance(body, list) else [body])]
    except BadInput as error:
        raise InvalidRequest(str(error), param=error.field) from error
    for fault in armed:
        context.engine.fault_injector.arm(fault)
    show_faults(context)


def clear_faults(context: RequestContext) -> None:
    context.engine.fault_injector.clear()
    show_faults(context)
