"""The ServiceAccount of a pool: for cloud identities that read weights. It has no rights in the cluster, and no token."""

from fairlead.kube.resource import SERVICE_ACCOUNTS, Manifest
from fairlead_operator.render.children import Plan


def service_account(plan: Plan) -> Manifest:
    """Annotations that others put on it, such as a cloud role, are left alone."""
    found = plan.child(SERVICE_ACCOUNTS, None)
    found["automountServiceAccountToken"] = False
    return found
