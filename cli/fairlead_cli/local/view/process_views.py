"""Views of the supervisor's processes for the live view."""

from fairlead_cli.local.processes.managed_process import ManagedProcess
from fairlead_cli.local.stack.supervisor import StackSupervisor
from fairlead_cli.local.view.live_view import ProcessView


def process_views(supervisor: StackSupervisor) -> tuple[ProcessView, ...]:
    """Returns the components, then the engine processes."""
    components = (
        ("gateway", supervisor.gateway),
        ("redis", supervisor.redis),
        ("indexer", supervisor.indexer),
        ("autoscaler", supervisor.autoscaler),
    )
    views = [_process_view(process, name, None, ()) for name, process in components if process is not None]
    for engine in supervisor.engines:
        if engine.process is not None:
            views.append(
                _process_view(engine.process, engine.name, engine.pool.model.key, tuple(engine.instance_ids()))
            )
    return tuple(views)


def _process_view(process: ManagedProcess, name: str, model: str | None, ids: tuple[str, ...]) -> ProcessView:
    pid = process.child.pid if process.child else None
    return ProcessView(name, process.phase.value, process.restarts, pid, model, ids)
