"""The URL of the Redis with the index, and the secret of its hashes: from options, a local stack or
a cluster.
"""

import os
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from fairlead.settings import CliSettings, read_settings
from fairlead_cli.index.options import IndexSource
from fairlead_cli.local.run_directory import running_stacks
from fairlead_cli.target import is_cluster_target


@dataclass(frozen=True, slots=True)
class IndexAddress:
    """URL of Redis, None when none is known, and the secret of the prefix hashes.

    namespace: of the kubeconfig, for bare names of models; None without a cluster.
    is_model_deleted: returns whether a model (``namespace/name``) exists no more; None without a
    cluster.
    read_pod_names: returns the pods of a namespace, uid → name; None without a cluster.
    """

    redis: str | None
    hash_secret: str
    namespace: str | None = None
    is_model_deleted: Callable[[str], Awaitable[bool]] | None = None
    read_pod_names: Callable[[str], Awaitable[Mapping[str, str]]] | None = None


@contextmanager
def open_index(source: IndexSource) -> Iterator[IndexAddress]:
    """Yields the address: from the options, from a cluster, or of the newest stack here that has a
    Redis.

    Raises ClusterUnreachable, or BadInput that names a missing permission.
    """
    settings = read_settings(CliSettings, os.environ)
    url = source.redis or (None if source.cluster.is_explicit else settings.redis_url)
    secret = settings.hash_secret or ""
    if is_cluster_target(source.cluster, url, "--redis"):
        from fairlead_cli.cluster.installation import open_installation

        with open_installation(source.cluster) as installation:
            secret = secret or installation.hash_secret()
            namespace = installation.access.namespace
            yield IndexAddress(
                installation.redis_url(),
                secret,
                namespace,
                installation.is_model_deleted,
                installation.read_pod_names,
            )
    elif url:
        yield IndexAddress(url, secret)
    else:
        stack = next((stack for stack in running_stacks() if stack.redis), None)
        yield IndexAddress(stack.redis, secret or stack.hash_secret) if stack else IndexAddress(None, secret)
