"""From the supervisor's running things to the values that the view draws."""

from fairlead_cli.local.keeper import Keeper
from fairlead_cli.local.management import Snapshot
from fairlead_cli.local.supervisor import Supervisor
from fairlead_cli.local.view import Frame, Process


def frame(
    supervisor: Supervisor,
    snapshot: Snapshot | None,
    *,
    url: str,
    manage: str,
    up_seconds: float,
    events: tuple[tuple[float, str], ...],
    closing: str = "",
) -> Frame:
    """The present moment."""
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
    for unit in supervisor.units:
        if unit.keeper is not None:
            processes.append(_process(unit.keeper, unit.name, unit.plan.model.key, tuple(unit.ids())))
    return Frame(url, manage, up_seconds, tuple(processes), snapshot, events, closing)


def _process(keeper: Keeper, name: str, model: str | None, ids: tuple[str, ...]) -> Process:
    pid = keeper.child.pid if keeper.child else None
    return Process(name, keeper.phase.value, keeper.restarts, pid, model, ids)
