"""The way to a cluster as the command line has it: kubeconfig and context of the person who types, and errors that name both."""

import os
import random
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fairlead import __version__
from fairlead.clock import Clock, SystemClock
from fairlead.kube.access import Access, AccessError, find_access, from_kubeconfig
from fairlead.kube.client import KubeApi
from fairlead.kube.errors import KubeError, Unauthenticated, Unreachable
from fairlead.limits import Limits
from fairlead_cli.cluster.plugin import login
from fairlead_cli.errors import NoCluster

LIMITS: Final = Limits(kube_attempts=2, kube_connect_seconds=4.0, kube_answer_seconds=20.0)
"""Somebody waits for the answer: a cluster that is away is told of at once."""


@dataclass(frozen=True, slots=True)
class Way:
    """What was typed: another kubeconfig, another context, a namespace; None for those of kubectl."""

    kubeconfig: Path | None = None
    context: str | None = None
    namespace: str | None = None

    @property
    def named(self) -> bool:
        """Was a cluster asked for in words?"""
        return any(one is not None for one in (self.kubeconfig, self.context, self.namespace))


def find(way: Way, environment: Mapping[str, str] | None = None, home: Path | None = None) -> Access:
    """Where the cluster is and who we are there, plugins run. Raises NoCluster: exit code 3."""
    environment = os.environ if environment is None else environment
    home = Path.home() if home is None else home
    try:
        paths = kubeconfigs(way, environment, home)
        return from_kubeconfig(paths, way.context, login) if paths else find_access(environment, home)
    except AccessError as error:
        raise NoCluster(error.message, hint=_hint(error)) from None


def kubeconfigs(way: Way, environment: Mapping[str, str], home: Path) -> list[Path]:
    """The files to read, as kubectl has it; none within a pod."""
    if way.kubeconfig is not None:
        return [way.kubeconfig]
    if named := environment.get("KUBECONFIG", ""):
        return [Path(part) for part in named.split(os.pathsep) if part]
    usual = home / ".kube" / "config"
    if usual.exists() or (way.context is not None and "KUBERNETES_SERVICE_HOST" not in environment):
        return [usual]
    return []


def _hint(error: AccessError) -> str:
    """What the person who types can do; an error about a field of the kubeconfig has its own."""
    if error.field == "contexts":
        return "`kubectl config get-contexts` lists what there is"
    if error.field in (None, "KUBECONFIG", "current-context"):
        return "name a kubeconfig by --kubeconfig or KUBECONFIG, and one of its contexts by --context"
    return error.hint or "mend it, or choose another by --kubeconfig or --context"


@asynccontextmanager
async def opened(access: Access, clock: Clock | None = None) -> AsyncIterator[tuple[KubeApi, str]]:
    """The API server and its version. Raises NoCluster when it does not answer or does not know us."""
    chance = random.SystemRandom().random
    async with KubeApi(access, clock or SystemClock(), chance, agent=f"fairlead/{__version__}", limits=LIMITS) as api:
        try:
            version = await api.version()
        except AccessError as error:
            raise NoCluster(error.message, hint=error.hint) from None
        except (Unreachable, Unauthenticated) as error:
            raise away(error, access) from None
        yield api, version


def away(error: KubeError, access: Access) -> NoCluster:
    """The same in words for who typed: which server, from where, and what to try."""
    if isinstance(error, Unauthenticated):
        return NoCluster(
            f"the API server {access.server} does not accept us, as {access.found} has it",
            hint="log in again: the token or certificate is not accepted, or has run out",
        )
    _, _, words = error.message.partition(": ")
    return NoCluster(
        f"the API server {access.server} does not answer: {words or error.message}",
        hint=f"it is that of {access.found}; is the cluster up, and reachable from here? "
        "Choose another by --context or --kubeconfig",
    )
