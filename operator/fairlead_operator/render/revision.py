"""Which pods belong to one another, and which rules and installation they were made with.

A pool's *revision* is the hash of all of its spec that shapes pods: numbers of replicas, objectives, routing and the pace of a
rollout are not in it. The pin, an annotation of the Deployment, keeps the revision together with the render version and
the installation's own values (image, pull secrets, addresses) that it was rendered with. As long as the revision stays the same, they
do too: a new release of Fairlead, or of the engine image in its chart, restarts no engine. With the next change of the spec
the pool gets the present ones.

A change to what a pod looks like gets a new version: ``pod.py`` (and what it is made of) is copied under the old number, and
``template.py`` knows both. The golden files of ``tests/operator/render/golden/v<number>`` hold every version to what it
was when it was released.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from fairlead.api import AcceleratorClassSpec, EngineKind, ModelDeployment, Pool
from fairlead.fleet.labels import POD_REVISION_LABEL, RENDER_PIN_ANNOTATION

CURRENT_VERSION: Final = 1
_HEX_DIGITS: Final = 10


@dataclass(frozen=True, slots=True)
class RenderPin:
    """What a pool was rendered with. ``image`` is the installation's, None where the spec names one. ``ipv6``: it listens there."""

    revision: str
    version: int
    image: str | None = None
    pull_secrets: tuple[str, ...] = ()
    ipv6: bool = False

    def annotations(self) -> dict[str, str]:
        """As they stand on the Deployment or LeaderWorkerSet."""
        kept: dict[str, Any] = {"version": self.version}
        if self.image is not None:
            kept["image"] = self.image
        if self.pull_secrets:
            kept["pullSecrets"] = list(self.pull_secrets)
        if self.ipv6:
            kept["ipv6"] = True
        return {
            POD_REVISION_LABEL: self.revision,
            RENDER_PIN_ANNOTATION: json.dumps(kept, separators=(",", ":"), sort_keys=True),
        }


def parse_pin(annotations: Mapping[str, str]) -> RenderPin | None:
    """The inverse; None when they are missing or somebody edited them into something else, and the pool is rendered anew."""
    try:
        kept = json.loads(annotations[RENDER_PIN_ANNOTATION])
        image, secrets = kept.get("image"), kept.get("pullSecrets", [])
        right = type(kept["version"]) is int and isinstance(image, str | None) and isinstance(secrets, list)
        if not right or not all(isinstance(one, str) for one in secrets):
            return None
        return RenderPin(
            annotations[POD_REVISION_LABEL], kept["version"], image, tuple(secrets), kept.get("ipv6") is True
        )
    except (KeyError, ValueError, TypeError, AttributeError):
        return None


def pool_revision(model: ModelDeployment, pool: Pool, accelerator: AcceleratorClassSpec) -> str:
    """The hash of all of a spec that shapes the pods of one pool."""
    spec = model.spec
    # What an accelerator costs is no pod's business, and how fast it is only a simulated engine's.
    unseen = {"costPerHour"} if spec.engine.kind is EngineKind.SIM else {"costPerHour", "profile"}
    # Without defaults, so that a field that a release adds to the API does not change the revision of those who leave it out.
    shaping = {
        "name": model.metadata.name,
        "model": _without_defaults(spec.model),
        "engine": _without_defaults(spec.engine),
        "kvCache": _without_defaults(spec.kv_cache),
        # Not without their defaults: no adapters and the default number of them are different things.
        "adapters": spec.adapters.model_dump(mode="json", by_alias=True) if spec.adapters is not None else None,
        "drain": spec.rollout.drain_seconds,
        "pool": {key: value for key, value in _without_defaults(pool).items() if key != "replicas"},
        "accelerator": {key: value for key, value in _without_defaults(accelerator).items() if key not in unseen},
    }
    text = json.dumps(shaping, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:_HEX_DIGITS]


def _without_defaults(part: Any) -> dict[str, Any]:
    """A part of the spec without what has its default: the same whether the API server filled defaults in or not."""
    plain: dict[str, Any] = part.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    return plain
