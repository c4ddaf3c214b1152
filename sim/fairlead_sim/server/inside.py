"""``/sim/…``: what no real engine has. The state inside for tests, and failures on demand."""

from dataclasses import asdict
from typing import Any

from fairlead.errors import BadInput
from fairlead_sim.server import faults
from fairlead_sim.server.app import Call
from fairlead_sim.server.fields import json_body
from fairlead_sim.server.info import answer
from fairlead_sim.server.problems import Refused


def state(call: Call) -> None:
    """Gauges, counters and what is armed."""
    engine, app = call.engine, call.app
    ranks = [driver.core.stats for driver in engine.drivers]
    body: dict[str, Any] = {
        "running": sum(rank.running for rank in ranks),
        "waiting": sum(rank.waiting for rank in ranks),
        "held": engine.unfinished - sum(driver.unfinished for driver in engine.drivers),
        "inside": len(engine.answers),
        "connections": len(app.connections),
        "requests_seen": app.requests_seen,
        "draining": engine.draining,
        "requests_while_draining": app.requests_while_draining,
        "paused": engine.paused,
        "sleep_level": engine.slumber.level,
        "given_up_seconds": sum(driver.given_up_seconds for driver in engine.drivers),
        "ranks": [asdict(rank) for rank in ranks],
        "faults": engine.faults.armed(),
        "kv_transfer": None if engine.transfer is None else engine.transfer.state(),
    }
    answer(call, body)


def show_faults(call: Call) -> None:
    """What is armed, and what could be."""
    answer(call, {"armed": call.engine.faults.armed(), "kinds": faults.KINDS})


def arm_faults(call: Call) -> None:
    """One fault or a list of them, added to what is armed."""
    body = json_body(call.request)
    try:
        armed = [faults.from_mapping(item) for item in (body if isinstance(body, list) else [body])]
    except BadInput as error:
        raise Refused(str(error), param=error.field) from error
    for fault in armed:
        call.engine.faults.arm(fault)
    show_faults(call)


def clear_faults(call: Call) -> None:
    """Disarm everything."""
    call.engine.faults.clear()
    show_faults(call)
