"""ModelTenants of a cluster, with an API server that changes and fails."""

from random import Random
from typing import Any

import pytest

from fairlead.kube.client import KubeApi
from fairlead.kube.resources import MODEL_TENANTS
from fairlead.runtime.clock import Pacing, SystemClock
from fairlead_gateway.tenants.supervisor.tenant_watch import TenantWatch
from fairlead_testing.kube.fake_server import FakeApiServer, fake_api_server
from fairlead_testing.waiting import wait_until

pytestmark = pytest.mark.sockets

OLD, NEW = "0a" * 32, "0b" * 32


def put(fake: FakeApiServer, name: str, *digests: str, **spec: Any) -> None:
    keys = [{"name": f"key-{number}", "digest": digest} for number, digest in enumerate(digests)]
    fake.put(MODEL_TENANTS, None, name, spec={"keys": keys, **spec})


def watch_of(fake: FakeApiServer) -> TenantWatch:
    clock, chance = SystemClock(), Random(1).random
    return TenantWatch(KubeApi(fake.config(), clock, chance), Pacing(clock, chance))


def digests_of(watch: TenantWatch) -> set[str]:
    return {key.digest.hex() for tenant in watch.tenants.values() for key in tenant.keys}


async def test_tenants_follow_the_cluster() -> None:
    async with fake_api_server() as fake:
        put(fake, "acme", OLD, NEW)
        watch, changes = watch_of(fake), [0]
        await watch.start(lambda: changes.append(1))
        try:
            await wait_until(lambda: watch.is_loaded)
            await wait_until(lambda: set(watch.tenants) == {"acme"})
            put(fake, "zeta", "0c" * 32, weight=3)
            await wait_until(lambda: set(watch.tenants) == {"acme", "zeta"})
            put(fake, "acme", NEW, weight="a field of a newer release")
            await wait_until(lambda: digests_of(watch) == {NEW, "0c" * 32})
            assert "the ModelTenant acme cannot be used: spec.weight" in watch.warnings()[0]
            put(fake, "acme", NEW)
            await wait_until(lambda: watch.warnings() == [])
            fake.remove(MODEL_TENANTS, None, "zeta")
            await wait_until(lambda: set(watch.tenants) == {"acme"})
            assert len(changes) > 1
        finally:
            await watch.stop()


async def test_the_writer_of_an_object_is_the_author_of_its_change() -> None:
    async with fake_api_server() as fake:
        put(fake, "acme", OLD)
        watch = watch_of(fake)
        await watch.start(lambda: None)
        try:
            await wait_until(lambda: watch.is_loaded and bool(watch.tenants))
            fields = [{"manager": "argocd", "time": "2027-01-15T08:00:00Z"}]
            keys = [{"name": "prod", "digest": NEW}]
            metadata = {"name": "acme", "managedFields": fields}
            fake.put(MODEL_TENANTS, None, "acme", metadata=metadata, spec={"keys": keys})
            await wait_until(lambda: digests_of(watch) == {NEW})
            assert watch.author_of("acme") == "argocd"
            assert watch.author_of("gone") == "the cluster"
        finally:
            await watch.stop()


async def test_tenants_that_may_not_be_listed_are_not_waited_for() -> None:
    async with fake_api_server() as fake:
        fake.refused_paths.add(MODEL_TENANTS.path())
        watch, loaded = watch_of(fake), list[bool]()
        await watch.start(lambda: loaded.append(watch.is_loaded))
        try:
            await wait_until(lambda: bool(loaded))
            assert loaded == [True]
            assert "cannot watch the tenants of the cluster" in watch.warnings()[0]
        finally:
            await watch.stop()


async def test_empty_cluster_is_loaded_and_tells_so() -> None:
    async with fake_api_server() as fake:
        watch, changes = watch_of(fake), [0]
        await watch.start(lambda: changes.append(1))
        try:
            await wait_until(lambda: len(changes) > 1)
            assert (watch.is_loaded, dict(watch.tenants), watch.warnings()) == (True, {}, [])
        finally:
            await watch.stop()
