"""Names and labels of children."""

import hashlib
import re
from collections.abc import Set
from typing import Final

from fairlead.api.spec.pools import Pool
from fairlead.api.v1alpha1 import ModelDeployment
from fairlead.fleet.labels import (
    ENDPOINT_LABEL,
    ENGINE_LABEL,
    FIELD_MANAGER,
    MANAGED_BY_LABEL,
    MODEL_LABEL,
    POOL_LABEL,
    ROLE_LABEL,
)

MAX_NAME_LENGTH: Final = 63
MAX_GROUP_NAME_LENGTH: Final = 45
"""Maximum name of a LeaderWorkerSet. Its StatefulSets append an index and a hash, and the result
becomes a label.
"""
LEADER_SUFFIX: Final = "-leader"
_DNS_1035: Final = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")


def child_name(model: str, pool: str, foreign: Set[str] = frozenset(), *, max_length: int = MAX_NAME_LENGTH) -> str:
    """Returns `<model>-<pool>` as a DNS label that begins with a letter, as Services require.

    Names that are too long, taken, or not a label get a hash of 6 hex digits, so that `qwen2.5` and
    `qwen2-5` differ.
    """
    plain = f"{model}-{pool}"
    label = plain.replace(".", "-")
    if not label[0].isalpha():
        label = f"m-{label}"
    if label == plain and len(label) <= max_length and label not in foreign and _DNS_1035.fullmatch(label):
        return label
    digest = hashlib.sha256(f"{model}/{pool}".encode()).hexdigest()[:6]
    return f"{label[: max_length - 7].rstrip('-')}-{digest}"


def selector_labels(model: ModelDeployment, pool: Pool) -> dict[str, str]:
    """Returns the labels that select a pool's pods. They must not change: a Deployment's selector
    cannot.
    """
    return {MODEL_LABEL: model.metadata.name, POOL_LABEL: pool.name}


def child_labels(model: ModelDeployment, pool: Pool) -> dict[str, str]:
    """Returns the labels of every child and its pods."""
    return {
        "app.kubernetes.io/component": "engine",
        "app.kubernetes.io/instance": model.metadata.name,
        MANAGED_BY_LABEL: FIELD_MANAGER,
        "app.kubernetes.io/name": "fairlead-engine",
        ENGINE_LABEL: model.spec.engine.type.label,
        ROLE_LABEL: pool.role.value,
        **selector_labels(model, pool),
    }


def endpoint_selector(model: ModelDeployment, pool: Pool) -> dict[str, str]:
    return {**selector_labels(model, pool), ENDPOINT_LABEL: "true"}
