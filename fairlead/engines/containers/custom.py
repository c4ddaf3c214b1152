"""An engine of one's own: its image and command, and what Fairlead decides as environment variables."""

from typing import Final

from fairlead.engines.containers.base import (
    HTTP_PORT,
    EngineContainer,
    HealthProbe,
    InstancePod,
    env_from_field,
    env_value,
)
from fairlead.engines.containers.prestop_drain import PreStopDrain
from fairlead.engines.containers.weights import model_weights
from fairlead.fleet.labels import PodEngineInfo

_DEFAULT_HEALTH_PATH: Final = "/health"


def custom_container(pod: InstancePod) -> EngineContainer:
    """One pod of it. Kubernetes puts the variables into command and args: ``$(PORT)``. Raises BadInput for an idle cache."""
    engine, shape = pod.spec.engine, pod.pool.parallelism
    loaded = model_weights(pod.spec.model)
    port = engine.port or HTTP_PORT
    own = (
        env_value("MODEL_PATH", loaded.argument),
        env_value("MODEL_NAME", pod.served_name),
        env_value("PORT", str(port)),
        env_from_field("POD_IP", "status.podIP"),
    )
    return EngineContainer(
        command=tuple(engine.command),
        args=tuple(engine.args),
        env=(*loaded.env, *own),
        ports={"http": port} if pod.serves_http else {},
        pod_info=PodEngineInfo(
            port=port,
            data_parallel=shape.data,
            transfer=pod.spec.kv_cache.transfer.value.lower() if pod.transfers_kv else None,
            served_name=engine.served_model_name,
        ),
        health=HealthProbe(path=engine.health_path or _DEFAULT_HEALTH_PATH) if pod.serves_http else None,
        drain=PreStopDrain(),
        weights=loaded,
        needs_shared_memory=shape.ranks > 1,
    )
