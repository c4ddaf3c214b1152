"""The container of a custom engine: the user's image and command, with Fairlead's values as
environment variables.
"""

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
    """Returns one pod's container.

    Raises BadInput if the spec sets a weights cache that the model source does not use.

    Kubernetes substitutes the variables in command and args, as in `$(PORT)`.
    """
    engine, shape = pod.spec.engine, pod.pool.parallelism
    weights = model_weights(pod.spec.model)
    port = engine.port or HTTP_PORT
    variables = (
        env_value("MODEL_PATH", weights.argument),
        env_value("MODEL_NAME", pod.served_name),
        env_value("PORT", str(port)),
        env_from_field("POD_IP", "status.podIP"),
    )
    return EngineContainer(
        command=tuple(engine.command),
        args=tuple(engine.args),
        env=(*weights.env, *variables),
        ports={"http": port} if pod.serves_http else {},
        pod_info=PodEngineInfo(
            port=port,
            data_parallel=shape.data,
            transfer=pod.spec.kv_cache.transfer.value.lower() if pod.transfers_kv else None,
            served_name=pod.spec.model.engine_name,
        ),
        health=HealthProbe(path=engine.health_path or _DEFAULT_HEALTH_PATH) if pod.serves_http else None,
        drain=PreStopDrain(),
        weights=weights,
        needs_shared_memory=shape.ranks > 1,
    )
