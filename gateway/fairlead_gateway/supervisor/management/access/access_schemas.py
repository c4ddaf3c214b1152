"""The types of the management API's JSON about tenants, their keys, and the audit log."""

from pydantic import Field

from fairlead_gateway.supervisor.management.schemas import ResponseModel


class KeyUseOut(ResponseModel):
    """An API key of a tenant."""

    name: str
    digest: str = Field(description="The first 12 digits of the key's digest.")
    expires_at: float | None = Field(description="Unix seconds; null if it does not expire.")
    last_used_at: float | None = Field(
        description="Unix seconds, to the minute; null if it was not used since this gateway started."
    )


class TenantOut(ResponseModel):
    """A tenant with its keys."""

    name: str
    tier: str
    weight: int
    is_suspended: bool
    keys: list[KeyUseOut]


class TenantsOut(ResponseModel):
    """The tenants that the token may see, by name."""

    started_at: float | None = Field(
        description="Since when this gateway counts uses, in Unix seconds; null if it has no tenants."
    )
    tenants: list[TenantOut]


class AuditRecordOut(ResponseModel):
    """One change or one privileged request: who, when, what, and why."""

    time: str = Field(description="RFC 3339 in UTC.")
    component: str = Field(description="gateway, operator or autoscaler.")
    instance: str = Field(description="The process that wrote it.")
    sequence: int = Field(description="Counts the records of the process from 1; a gap is a loss.")
    action: str = Field(description="A word of a closed list, such as KeyRevoked.")
    object: str = Field(description="What was changed or read, such as ModelTenant/acme.")
    actor: str = Field(description="Who did it: a management token, a field manager of Kubernetes, or a component.")
    tenant: str | None = Field(None, description="Whose object it is; null for objects of the cluster.")
    before: dict[str, str | int | float | bool | None] = Field({}, description="Values that changed, before.")
    after: dict[str, str | int | float | bool | None] = Field({}, description="The same, after.")
    reason: str = ""
    request_id: str | None = None


class AuditOut(ResponseModel):
    """Audit records of this gateway, newest first."""

    records: list[AuditRecordOut]
