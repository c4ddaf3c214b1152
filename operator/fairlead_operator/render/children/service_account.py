"""The ServiceAccount of a pool: an identity for reading weights, without rights or a token."""

from fairlead.kube.resources import SERVICE_ACCOUNTS, Manifest
from fairlead_operator.render.pool_context import PoolContext


def service_account(pool: PoolContext) -> Manifest:
    """Returns the ServiceAccount. Annotations of other writers, such as a cloud role, are kept."""
    account = pool.make_child(SERVICE_ACCOUNTS, None)
    account["automountServiceAccountToken"] = False
    return account
