"""Builds a frame of the live view from the supervisor's state."""

from fairlead_cli.local.processes.managed_process import ManagedProcess
from fairlead_cli.local.stack.supervisor import StackSupervisor
from fairlead_cli.local.view.live_view import Frame, ProcessView
from fairlead_cli.management.client import GatewaySnapshot


def build_frame(
    supervisor: StackSupervisor,
    snapshot: GatewaySnapshot | None,
    *,
    url: str,
    manage: str,
    up_seconds: float,
    events: tuple[tuple[float, str], ...],
    closing: str = "",
) -> Frame:
    """Returns the present frame."""
    processes = [
        _process(keeper, name, None, ())
        for name, keeper in (
            ("gateway", supervisor.gateway),
            ("redis", supervisor.redis),
            ("indexer", supervisor.indexer),
            ("autoscaler", supervisor.autoscaler),
        )
        if keeper is not None
    ]
    for unit in supervisor.engines:
        if unit.process is not None:
            processes.append(_process(unit.process, unit.name, unit.pool.model.key, tuple(unit.instance_ids())))
    return Frame(url, manage, up_seconds, tuple(processes), snapshot, events, closing)


def _process(keeper: ManagedProcess, name: str, model: str | None, ids: tuple[str, ...]) -> ProcessView:
    pid = keeper.child.pid if keeper.child else None
    return ProcessView(name, keeper.phase.value, keeper.restarts, pid, model, ids)
