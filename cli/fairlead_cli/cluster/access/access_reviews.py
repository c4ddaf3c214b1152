"""Asking the API server who may do what: about ourselves, and about service accounts."""

from dataclasses import dataclass
from typing import Any

from fairlead.kube.client import KubeApi
from fairlead.kube.errors import KubeError
from fairlead.kube.resources import ACCESS_REVIEWS, SELF_REVIEWS
from fairlead_cli.cluster.missing_value import MissingValue, value_or_missing

_FIELD_MANAGER = "fairlead-cli"


@dataclass(frozen=True, slots=True, order=True)
class Permission:
    """``namespace`` None: in all of them. ``name``: on that object only."""

    group: str
    resource: str
    verb: str
    namespace: str | None = None
    name: str | None = None

    def __str__(self) -> str:
        what = f"{self.resource}.{self.group}" if self.group else self.resource
        what = f"{what}/{self.name}" if self.name else what
        return f"{self.verb} {what} {f'in {self.namespace}' if self.namespace else 'in the whole cluster'}"

    def _attributes(self) -> dict[str, Any]:
        resource, _, sub = self.resource.partition("/")
        found = {"group": self.group, "resource": resource, "subresource": sub, "verb": self.verb}
        found |= {"namespace": self.namespace or "", "name": self.name or ""}
        return {name: value for name, value in found.items() if value}


async def review_own_access(api: KubeApi, permission: Permission) -> bool | MissingValue:
    """Everybody may ask this about themselves."""
    return await value_or_missing(_create_review(api, SELF_REVIEWS.kind, permission, {}))


async def review_account_access(
    api: KubeApi, namespace: str, account: str, permission: Permission
) -> bool | MissingValue:
    """About a service account, as the API server itself would decide. That takes the right to create SubjectAccessReviews."""
    groups = ["system:serviceaccounts", f"system:serviceaccounts:{namespace}", "system:authenticated"]
    who = {"user": f"system:serviceaccount:{namespace}:{account}", "groups": groups}
    return await value_or_missing(_create_review(api, ACCESS_REVIEWS.kind, permission, who))


async def _create_review(api: KubeApi, kind: str, right: Permission, who: dict[str, Any]) -> bool:
    review = {
        "apiVersion": SELF_REVIEWS.api_version,
        "kind": kind,
        "metadata": {},
        "spec": {"resourceAttributes": right._attributes(), **who},
    }
    status = (await api.create(review, _FIELD_MANAGER)).get("status") or {}
    if status.get("evaluationError") and not status.get("allowed"):
        raise KubeError(str(status["evaluationError"]))
    return bool(status.get("allowed"))
