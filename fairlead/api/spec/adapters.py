"""`spec.adapters`: slots for LoRA adapters, and where their weights come from."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from fairlead.api.spec.model_source import SecretReference
from fairlead.api.strict_model import StrictModel, api_field, api_list
from fairlead.api.value_types import Int32, Size, Subdomain


class DownloadCredentials(StrictModel):
    """Credentials for downloads of adapters."""

    secret_ref: Annotated[
        SecretReference,
        api_field(
            "a Secret in the same namespace; its entries become environment variables of the downloader, such as "
            "AWS_ACCESS_KEY_ID and HF_TOKEN. An entry .dockerconfigjson has the credentials of registries",
            "{name: lora-store}",
        ),
    ]


class DownloadSettings(StrictModel):
    """A container in each engine's pod that downloads adapters."""

    size: Annotated[
        Size,
        api_field(
            "size of the volume for downloaded adapters in each pod; those that were not used for longest are "
            "deleted when it is full. An adapter may have 95 % of it",
            "100Gi",
        ),
    ] = "20Gi"
    credentials: DownloadCredentials | None = api_field(
        "credentials of the stores; left out = the identity of the pod's service account, or none", default=None
    )


class Adapters(StrictModel):
    """Slots for LoRA adapters in every engine. If left out, engines load no adapters."""

    unique: ClassVar[Mapping[str, str]] = {"claim_names": ""}

    slots: Annotated[
        Int32, api_field("adapters that an engine holds at a time, so also the most in one batch", "8", ge=1, le=512)
    ] = 4
    max_rank: Annotated[
        Literal[8, 16, 32, 64, 128, 256, 512], api_field("maximum rank of an adapter; memory grows with it", "64")
    ] = 16
    claim_names: list[Subdomain] = api_list(
        "PersistentVolumeClaims in the same namespace that hold adapters; every engine mounts them, only to read "
        "(ReadOnlyMany or ReadWriteMany). A ModelAdapter names one in its source",
        "[adapters]",
        max_length=16,
        is_set=True,
    )
    download: DownloadSettings | None = api_field(
        "a container in each pod that downloads adapters with s3://, gs:// and oci:// sources, and hf:// ones with a "
        "revision or digest; left out = none",
        default=None,
    )
