"""Environment variables of an engine: a text, or where in the cluster the text is."""

from typing import Annotated, ClassVar

from pydantic import Field

from fairlead.api.strict_model import Rule, StrictModel
from fairlead.api.value_types import Subdomain

_NAME_PATTERN = r"^[A-Za-z_][A-Za-z0-9_]*$"
_KEY_PATTERN = r"^[-._a-zA-Z0-9]+$"
_FIELD_PATTERN = (
    r"^(metadata\.(name|namespace|uid|(labels|annotations)\['[^']+'\])|spec\.(nodeName|serviceAccountName)"
    r"|status\.(hostIP|podIP)s?)$"
)


class KeyReference(StrictModel):
    """One entry of a Secret or ConfigMap of the same namespace."""

    name: Annotated[Subdomain, Field(description="of the Secret or ConfigMap", examples=["engine-secrets"])]
    key: Annotated[
        str, Field(min_length=1, max_length=253, pattern=_KEY_PATTERN, description="of the entry", examples=["token"])
    ]
    optional: Annotated[
        bool, Field(description="the engine starts without it too; otherwise its pods wait until it exists")
    ] = False


class FieldReference(StrictModel):
    """A field of the engine's own pod."""

    field_path: Annotated[
        str,
        Field(
            min_length=1,
            max_length=253,
            pattern=_FIELD_PATTERN,
            description="as in a pod: metadata.name, metadata.labels['KEY'], spec.nodeName, status.podIP, status.hostIP",
            examples=["status.podIP"],
        ),
    ]


class EnvironmentSource(StrictModel):
    """Where a value comes from; exactly one."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="[has(self.secretKeyRef), has(self.configMapKeyRef), has(self.fieldRef)].filter(given, given).size() == 1",
            message="a value comes from exactly one place",
            fix="give one of secretKeyRef, configMapKeyRef and fieldRef",
            violation=lambda one: [one.secret_key_ref, one.config_map_key_ref, one.field_ref].count(None) != 2,
        ),
    )

    secret_key_ref: Annotated[
        KeyReference | None, Field(description="an entry of a Secret", examples=["{name: engine-secrets, key: token}"])
    ] = None
    config_map_key_ref: Annotated[
        KeyReference | None, Field(description="an entry of a ConfigMap", examples=["{name: engine, key: level}"])
    ] = None
    field_ref: Annotated[FieldReference | None, Field(examples=["{fieldPath: status.podIP}"])] = None


class EnvironmentVariable(StrictModel):
    """One environment variable of the engine's process."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="!has(self.valueFrom) || !has(self.value) || self.value == ''",
            message="value and valueFrom exclude one another",
            fix="remove one of them",
            at=("valueFrom",),
            violation=lambda one: one.value_from is not None and one.value != "",
        ),
    )

    name: Annotated[
        str,
        Field(
            min_length=1,
            max_length=256,
            pattern=_NAME_PATTERN,
            description="as the engine reads it",
            examples=["VLLM_LOGGING_LEVEL"],
        ),
    ]
    value: Annotated[str, Field(max_length=4096, description="its text; empty when left out")] = ""
    value_from: Annotated[
        EnvironmentSource | None,
        Field(
            description="where in the cluster its text is; local mode simulates without it",
            examples=["{secretKeyRef: {name: engine-secrets, key: token}}"],
        ),
    ] = None
