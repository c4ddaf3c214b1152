"""The ServiceAccount of a pool: for cloud identities that read weights. It has no rights in the cluster, and no token."""

from fairlead.kube.resources import SERVICE_ACCOUNTS, Manifest
from fairlead_operator.render.pool_context import PoolContext


def service_account(pool: PoolContext) -> Manifest:
    """Annotations that others put on it, such as a cloud role, are left alone."""
    found = pool.make_child(SERVICE_ACCOUNTS, None)
    found["automountServiceAccountToken"] = False
    return found
