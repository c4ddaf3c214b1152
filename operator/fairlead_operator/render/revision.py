"""Pool revisions and render pins, which keep upgrades from restarting engines.

A pool's *revision* is the hash of everything in its spec that affects pods: not replica counts,
the SLO, routing or rollout settings. The *pin* is an annotation of the workload. It stores the
revision, the render version and the installation's values (image, pull secrets, IP family, user)
of the last rendering. While the revision is unchanged, the pool is rendered with the pinned values.
A new release, or a new engine image in its chart, therefore restarts no engine. The next change of
the spec takes the current values.

A change of the pod template needs a new version in `template_versions.py`. It is a renderer that
adds to the earlier ones, or a copy of `pod_template.py` and its parts under the old number. Golden
files in `tests/operator/render/golden/v<number>` keep every released version unchanged.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from fairlead.api.spec.accelerator_class import AcceleratorClassSpec
from fairlead.api.spec.engine import EngineType
from fairlead.api.spec.pools import Pool
from fairlead.api.v1alpha1 import ModelDeployment
from fairlead.fleet.labels import POD_REVISION_LABEL, RENDER_PIN_ANNOTATION

CURRENT_VERSION: Final = 1
POOL_BOUNDS: Final = ("minReplicas", "maxReplicas")
_HEX_DIGITS: Final = 10
_GATEWAY_FIELDS: Final = ("unknownFields", "allowedFields", "allowedPaths", "allowedHeaders")
"""Fields of `spec.engine` that only gateways read; they affect no pod."""


@dataclass(frozen=True, slots=True)
class RenderPin:
    """The values that a pool was rendered with.

    image: the installation's image; None if the spec names one.
    ipv6: engines listen on IPv6.
    assigned_user: the cluster assigns user and group ids, so pods name none.
    downloader_image: of the container that downloads adapters; None if the model has none.
    """

    revision: str
    version: int
    image: str | None = None
    pull_secrets: tuple[str, ...] = ()
    ipv6: bool = False
    downloader_image: str | None = None
    assigned_user: bool = False

    def annotations(self) -> dict[str, str]:
        """Returns the annotations of a workload that store its pin and its pool revision."""
        values: dict[str, Any] = {"version": self.version}
        if self.image is not None:
            values["image"] = self.image
        if self.pull_secrets:
            values["pullSecrets"] = list(self.pull_secrets)
        if self.ipv6:
            values["ipv6"] = True
        if self.assigned_user:
            values["assignedUser"] = True
        if self.downloader_image is not None:
            values["downloaderImage"] = self.downloader_image
        return {
            POD_REVISION_LABEL: self.revision,
            RENDER_PIN_ANNOTATION: json.dumps(values, separators=(",", ":"), sort_keys=True),
        }


def parse_pin(annotations: Mapping[str, str]) -> RenderPin | None:
    """Returns the pin of a workload's annotations. Missing or invalid pins give None: a new
    rendering.
    """
    try:
        values = json.loads(annotations[RENDER_PIN_ANNOTATION])
        image, secrets, downloader = values.get("image"), values.get("pullSecrets", []), values.get("downloaderImage")
        is_valid = type(values["version"]) is int and isinstance(image, str | None) and isinstance(secrets, list)
        is_valid = is_valid and isinstance(downloader, str | None)
        if not is_valid or not all(isinstance(secret, str) for secret in secrets):
            return None
        return RenderPin(
            annotations[POD_REVISION_LABEL],
            values["version"],
            image,
            tuple(secrets),
            values.get("ipv6") is True,
            downloader,
            values.get("assignedUser") is True,
        )
    except (KeyError, ValueError, TypeError, AttributeError):
        return None


def pool_revision(model: ModelDeployment, pool: Pool, accelerator: AcceleratorClassSpec) -> str:
    """Returns the hash of everything in a spec that affects the pods of one pool."""
    spec = model.spec
    # The cost of an accelerator affects no pod; its profile affects only simulated engines.
    ignored_fields = {"costPerHour"} if spec.engine.type is EngineType.SIM else {"costPerHour", "profile"}
    # Without defaults: a new API field must not change the revision of specs that omit it.
    parts = {"model": spec.model, "engine": spec.engine, "kvCache": spec.kv_cache}
    given = {name: _without_defaults(part) for name, part in parts.items()}
    for name in _GATEWAY_FIELDS:
        given["engine"].pop(name, None)
    content = {
        "name": model.metadata.name,
        **engine_fields({**given, "pools": [_without_defaults(pool)]}),
        # None for no adapters, which differ from the default number of adapters.
        "adapters": None if spec.adapters is None else _without_defaults(spec.adapters),
        "drain": spec.rollout.drain_seconds,
        "accelerator": {
            name: value for name, value in _without_defaults(accelerator).items() if name not in ignored_fields
        },
    }
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:_HEX_DIGITS]


def engine_fields(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a spec without the bounds of its pools, and without served names after the first.

    Why: an engine knows one name. Gateways replace the others.
    """
    model = dict(spec.get("model") or {})
    if names := model.pop("servedNames", None):
        model["servedNames"] = names[:1]
    pools = [
        {name: value for name, value in pool.items() if name not in POOL_BOUNDS} for pool in spec.get("pools") or []
    ]
    return {**spec, "model": model, "pools": pools}


def _without_defaults(part: Any) -> dict[str, Any]:
    fields: dict[str, Any] = part.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    return fields
