"""Words of vLLM, KServe and KubeAI for what a ModelDeployment says in another way.

People write what they know. A field that is unknown here and has one of these names gets its place
in a ModelDeployment as the fix. The names are compared without case, hyphens and underscores.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from fairlead.api.spec.engine import EngineType
from fairlead.manifests.known_flags import is_known_flag

_TENSOR, _POOL = "spec.pools[].parallelism.tensor", "spec.pools[]"
_WORDS: Final[Mapping[str, str]] = MappingProxyType(
    {
        # vLLM
        "tensorparallelsize": _TENSOR,
        "tensorparallel": _TENSOR,
        "pipelineparallelsize": "spec.pools[].parallelism.pipeline",
        "dataparallelsize": "spec.pools[].parallelism.data",
        "servedmodelname": "spec.model.servedNames",
        "itl": "spec.slo.tpot",
        # words of many
        "gpu": _TENSOR,
        "gpus": _TENSOR,
        "gpucount": _TENSOR,
        "accelerator": f"{_POOL}.acceleratorClassName",
        "gputype": f"{_POOL}.acceleratorClassName",
        "nodeselector": f"{_POOL}.template.spec.nodeSelector",
        "tolerations": f"{_POOL}.template.spec.tolerations",
        "affinity": f"{_POOL}.template.spec.affinity",
        "priorityclassname": f"{_POOL}.template.spec.priorityClassName",
        "serviceaccountname": f"{_POOL}.template.spec.serviceAccountName",
        "volumes": f"{_POOL}.template.spec.volumes",
        "containers": f"{_POOL}.template.spec.containers",
        "resources": f"{_POOL}.template.spec.containers[].resources",
        # KServe
        "storageuri": "spec.model.uri",
        "minreplicas": f"{_POOL}.minReplicas",
        "maxreplicas": f"{_POOL}.maxReplicas",
        "runtime": "spec.engine.type",
        "modelformat": "spec.engine.type",
        "template": f"{_POOL}.template",
        "parallelism": f"{_POOL}.parallelism",
        "scaletarget": "spec.slo, by which `autoscaling: {mode: Auto}` scales",
        "scalemetric": "spec.slo, by which `autoscaling: {mode: Auto}` scales",
        # KubeAI
        "url": "spec.model.uri",
        "resourceprofile": f"{_POOL}.acceleratorClassName",
        "targetrequests": "spec.slo, by which `autoscaling: {mode: Auto}` scales",
        "scaledowndelayseconds": "spec.autoscaling.stabilizationWindow",
        "cacheprofile": "spec.model.cache",
        "loadbalancing": "spec.routing.preset",
        "args": "spec.engine.args",
        "env": "spec.engine.env",
        "image": "spec.engine.image",
    }
)


def own_words(name: str) -> str | None:
    """Returns where a ModelDeployment says what a field of another system says; None if unknown.

    A flag of vLLM, however it is written, belongs into the arguments of the engine.
    """
    word = name.replace("-", "").replace("_", "").lower()
    if word in _WORDS:
        return _WORDS[word]
    kebab = "".join(f"-{char.lower()}" if char.isupper() else char for char in name).replace("_", "-").strip("-")
    return f'spec.engine.args: ["--{kebab}=…"]' if is_known_flag(EngineType.VLLM, f"--{kebab}") else None
