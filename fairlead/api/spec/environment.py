"""Environment variables of engines: literal text, or a reference into the cluster."""

from typing import Annotated, ClassVar

from pydantic import Field

from fairlead.api.strict_model import Rule, StrictModel, api_field
from fairlead.api.value_types import Subdomain

_NAME_PATTERN = r"^[A-Za-z_][A-Za-z0-9_]*$"
_KEY_PATTERN = r"^[-._a-zA-Z0-9]+$"
_FIELD_PATTERN = (
    r"^(metadata\.(name|namespace|uid|(labels|annotations)\['[^']+'\])|spec\.(nodeName|serviceAccountName)"
    r"|status\.(hostIP|podIP)s?)$"
)


class KeyReference(StrictModel):
    """An entry of a Secret or ConfigMap in the same namespace."""

    name: Annotated[Subdomain, api_field("name of the Secret or ConfigMap", "engine-secrets")]
    key: Annotated[str, api_field("key of the entry", "token", min_length=1, max_length=253, pattern=_KEY_PATTERN)]
    optional: Annotated[
        bool, api_field("true: the engine starts without the entry; false: pods wait until the entry exists")
    ] = False


class FieldReference(StrictModel):
    """A field of the engine's own pod."""

    field_path: Annotated[
        str,
        api_field(
            "field of the pod: metadata.name, metadata.labels['KEY'], spec.nodeName, status.podIP, status.hostIP",
            "status.podIP",
            min_length=1,
            max_length=253,
            pattern=_FIELD_PATTERN,
        ),
    ]


class EnvironmentSource(StrictModel):
    """The source of a value; exactly one field is set."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="[has(self.secretKeyRef), has(self.configMapKeyRef), has(self.fieldRef)].filter(given, given).size() == 1",
            message="a value needs exactly one source",
            fix="give one of secretKeyRef, configMapKeyRef and fieldRef",
            violation=lambda source: (
                [source.secret_key_ref, source.config_map_key_ref, source.field_ref].count(None) != 2
            ),
        ),
    )

    secret_key_ref: Annotated[
        KeyReference | None, api_field("an entry of a Secret", "{name: engine-secrets, key: token}")
    ] = None
    config_map_key_ref: Annotated[
        KeyReference | None, api_field("an entry of a ConfigMap", "{name: engine, key: level}")
    ] = None
    field_ref: Annotated[FieldReference | None, Field(examples=["{fieldPath: status.podIP}"])] = None


class EnvironmentVariable(StrictModel):
    """An environment variable of the engine process."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="!has(self.valueFrom) || !has(self.value) || self.value == ''",
            message="value and valueFrom exclude each other",
            fix="remove one of them",
            at=("valueFrom",),
            violation=lambda variable: variable.value_from is not None and variable.value != "",
        ),
    )

    name: Annotated[
        str,
        api_field("name of the variable", "VLLM_LOGGING_LEVEL", min_length=1, max_length=256, pattern=_NAME_PATTERN),
    ]
    value: Annotated[str, api_field("literal text; left out = empty", max_length=4096)] = ""
    value_from: Annotated[
        EnvironmentSource | None,
        api_field(
            "source of the text in the cluster; simulations of local mode do without it",
            "{secretKeyRef: {name: engine-secrets, key: token}}",
        ),
    ] = None
