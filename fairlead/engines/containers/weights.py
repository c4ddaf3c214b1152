"""Where weights come from → what the engine is told to load, and the volumes, variables and secrets that it takes.

``hf://`` is downloaded by the engine into a cache; ``s3://`` and ``gs://`` are streamed from the store into the accelerator;
``oci://`` is mounted as an image volume, which the node caches; ``pvc:`` is mounted; ``file://`` is in the image.
"""

from typing import Any, Final

from fairlead.api import ModelCache, ModelSource
from fairlead.engines.containers.base import ModelWeights, env_value
from fairlead.errors import BadInput

MODEL_FOLDER: Final = "/var/lib/fairlead/model"
CACHE_FOLDER: Final = "/var/cache/fairlead"
_MODEL_VOLUME: Final = "model"
_CACHE_VOLUME: Final = "cache"


def model_weights(source: ModelSource) -> ModelWeights:
    """What a container of a real engine needs. Raises BadInput for a cache that nothing would use."""
    secret = source.credentials.secret_name if source.credentials is not None else None
    if source.scheme == "hf":
        return ModelWeights(
            argument=source.location,
            volumes=(_cache_volume(source.cache),),
            mounts=({"name": _CACHE_VOLUME, "mountPath": CACHE_FOLDER},),
            env=(env_value("HF_HOME", f"{CACHE_FOLDER}/huggingface"),),
            secret=secret,
        )
    if source.cache is not None:
        whose = "the node keeps" if source.scheme == "oci" else "stream into the accelerator and nobody keeps"
        message = f"weights of {source.scheme}:// are what {whose}, so a cache would stay empty"
        raise BadInput(message, field="spec.model.cache", hint="remove cache")
    if source.scheme in ("s3", "gs"):
        return ModelWeights(argument=source.source, secret=secret, streamed=True)
    if source.scheme == "oci":
        return ModelWeights(
            argument=MODEL_FOLDER,
            volumes=({"name": _MODEL_VOLUME, "image": {"reference": source.location, "pullPolicy": "IfNotPresent"}},),
            mounts=({"name": _MODEL_VOLUME, "mountPath": MODEL_FOLDER, "readOnly": True},),
            pull_secret=secret,
        )
    if source.scheme == "pvc":
        claim, _, path = source.location.partition("/")
        return ModelWeights(
            argument=f"{MODEL_FOLDER}/{path.strip('/')}".rstrip("/"),
            volumes=({"name": _MODEL_VOLUME, "persistentVolumeClaim": {"claimName": claim, "readOnly": True}},),
            mounts=({"name": _MODEL_VOLUME, "mountPath": MODEL_FOLDER, "readOnly": True},),
        )
    return ModelWeights(argument=source.location)


def _cache_volume(cache: ModelCache | None) -> dict[str, Any]:
    if cache is None:
        return {"name": _CACHE_VOLUME, "emptyDir": {}}
    if cache.claim_name is not None:
        return {"name": _CACHE_VOLUME, "persistentVolumeClaim": {"claimName": cache.claim_name}}
    if cache.storage_class_name is None:
        return {"name": _CACHE_VOLUME, "emptyDir": {"sizeLimit": cache.size}}
    claim = {
        "accessModes": ["ReadWriteOnce"],
        "storageClassName": cache.storage_class_name,
        "resources": {"requests": {"storage": cache.size}},
    }
    return {"name": _CACHE_VOLUME, "ephemeral": {"volumeClaimTemplate": {"spec": claim}}}
