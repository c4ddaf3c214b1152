"""Maps the source of weights to the engine's model argument, volumes, variables and secrets.

- `hf://`: downloaded by the engine into a cache.
- `s3://`, `gs://`: streamed from the store into the accelerator.
- `oci://`: mounted as an image volume, which the node caches.
- `pvc:`: mounted.
- `file://`: part of the image.
"""

from typing import Any, Final

from fairlead.api.spec.model_source import ModelCache, ModelSource
from fairlead.engines.containers.base import ModelWeights, env_value
from fairlead.errors import BadInput

MODEL_FOLDER: Final = "/var/lib/fairlead/model"
CACHE_FOLDER: Final = "/var/cache/fairlead"
_MODEL_VOLUME: Final = "model"
_CACHE_VOLUME: Final = "cache"


def model_weights(source: ModelSource) -> ModelWeights:
    """Returns the model argument of a real engine, and what its pod needs to provide the weights.

    Raises BadInput if the spec sets a weights cache that the model source does not use.
    """
    secret = source.credentials.secret_ref.name if source.credentials is not None else None
    if source.scheme == "hf":
        return ModelWeights(
            argument=source.location,
            volumes=(_cache_volume(source.cache),),
            mounts=({"name": _CACHE_VOLUME, "mountPath": CACHE_FOLDER},),
            env=(env_value("HF_HOME", f"{CACHE_FOLDER}/huggingface"),),
            secret=secret,
        )
    if source.cache is not None:
        reason = "the node stores them" if source.scheme == "oci" else "they stream into the accelerator"
        message = f"a cache is not used for {source.scheme}:// weights: {reason}"
        raise BadInput(message, field="spec.model.cache", hint="remove cache")
    if source.scheme in ("s3", "gs"):
        return ModelWeights(argument=source.uri, secret=secret, streamed=True)
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
