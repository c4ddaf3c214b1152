"""Access reviews: queries to the API server whether the user, or a service account, has a
permission.
"""

from dataclasses import dataclass
from typing import Any

from fairlead.kube.client import KubeApi
from fairlead.kube.errors import KubeError
from fairlead.kube.resources import ACCESS_REVIEWS, SELF_REVIEWS
from fairlead_cli.cluster.missing_value import MissingValue, value_or_missing

_FIELD_MANAGER = "fairlead-cli"


@dataclass(frozen=True, slots=True, order=True)
class Permission:
    """A verb on a resource. ``namespace`` None: in all namespaces. ``name``: only the object of
    this name.
    """

    group: str
    resource: str
    verb: str
    namespace: str | None = None
    name: str | None = None

    def __str__(self) -> str:
        resource = f"{self.resource}.{self.group}" if self.group else self.resource
        resource = f"{resource}/{self.name}" if self.name else resource
        return f"{self.verb} {resource} {f'in {self.namespace}' if self.namespace else 'in the whole cluster'}"

    def _attributes(self) -> dict[str, Any]:
        resource, _, sub = self.resource.partition("/")
        attributes = {"group": self.group, "resource": resource, "subresource": sub, "verb": self.verb}
        attributes |= {"namespace": self.namespace or "", "name": self.name or ""}
        return {name: value for name, value in attributes.items() if value}


async def review_own_access(api: KubeApi, permission: Permission) -> bool | MissingValue:
    """Returns whether the user has the permission, or why the review failed.

    Every user may create this review.
    """
    return await value_or_missing(_create_review(api, SELF_REVIEWS.kind, permission, {}))


async def review_account_access(
    api: KubeApi, namespace: str, account: str, permission: Permission
) -> bool | MissingValue:
    """Returns whether a service account has the permission, or why the review failed.

    The user needs the right to create SubjectAccessReviews.
    """
    groups = ["system:serviceaccounts", f"system:serviceaccounts:{namespace}", "system:authenticated"]
    subject = {"user": f"system:serviceaccount:{namespace}:{account}", "groups": groups}
    return await value_or_missing(_create_review(api, ACCESS_REVIEWS.kind, permission, subject))


async def _create_review(api: KubeApi, kind: str, right: Permission, subject: dict[str, Any]) -> bool:
    review = {
        "apiVersion": SELF_REVIEWS.api_version,
        "kind": kind,
        "metadata": {},
        "spec": {"resourceAttributes": right._attributes(), **subject},
    }
    status = (await api.create(review, _FIELD_MANAGER)).get("status") or {}
    if status.get("evaluationError") and not status.get("allowed"):
        raise KubeError(str(status["evaluationError"]))
    return bool(status.get("allowed"))
