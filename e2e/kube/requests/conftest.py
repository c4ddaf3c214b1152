"""One installation with the settings of gateways that several tests need."""

from collections.abc import Iterator

import pytest

from e2e.kube.cluster_access.kubectl import Kubectl, temporary_namespace
from e2e.kube.workloads.helm_release import TEAM_LABEL, HelmRelease, external_engines, management_tokens, token_issuers
from e2e.resource_locks import INSTALLATION_LOCK, file_lock


@pytest.fixture(scope="session")
def outside(kubectl: Kubectl) -> Iterator[Kubectl]:
    """A ``kubectl`` in the namespace whose models may name endpoints outside of the cluster."""
    with temporary_namespace(kubectl) as inside:
        yield inside


@pytest.fixture(scope="session")
def configured(kubectl: Kubectl, outside: Kubectl, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HelmRelease]:
    """Fairlead with settings that are no defaults. A test that uses it runs last: it is had alone
    until the session ends."""
    with file_lock(INSTALLATION_LOCK, alone=True):
        release = HelmRelease(kubectl)
        release.ensure()
        settings = {
            "externalEngines": external_engines(outside, release, tmp_path_factory.mktemp("api")),
            "audit": management_tokens(release),
            "auth": token_issuers(kubectl),
            "networkPolicies": {"metricsFrom": [{"namespaceSelector": {"matchLabels": TEAM_LABEL}}]},
        }
        with release.settings(**settings):
            yield release
