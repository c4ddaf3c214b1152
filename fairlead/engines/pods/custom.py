"""An engine of one's own: its image and command, and what Fairlead decides as environment variables."""

from typing import Final

from fairlead.cluster_labels import EngineNotes
from fairlead.engines.pods.base import HTTP_PORT, EngineContainer, Health, Member, from_pod, variable
from fairlead.engines.pods.drain import Drain
from fairlead.engines.pods.sources import weights

_USUAL_HEALTH: Final = "/health"


def custom_container(member: Member) -> EngineContainer:
    """One pod of it. Kubernetes puts the variables into command and args: ``$(PORT)``. Raises BadInput for an idle cache."""
    engine, shape = member.spec.engine, member.pool.parallelism
    loaded = weights(member.spec.model)
    port = engine.port or HTTP_PORT
    own = (
        variable("MODEL_PATH", loaded.argument),
        variable("MODEL_NAME", member.name),
        variable("PORT", str(port)),
        from_pod("POD_IP", "status.podIP"),
    )
    return EngineContainer(
        command=tuple(engine.command),
        args=tuple(engine.args),
        env=(*loaded.env, *own),
        ports={"http": port} if member.answers else {},
        notes=EngineNotes(
            port=port,
            data_parallel=shape.data,
            transfer=member.spec.kv_cache.transfer.value.lower() if member.hands_over else None,
            served_name=engine.served_model_name,
        ),
        health=Health(path=engine.health_path or _USUAL_HEALTH) if member.answers else None,
        drain=Drain(),
        weights=loaded,
        shared_memory=shape.ranks > 1,
    )
