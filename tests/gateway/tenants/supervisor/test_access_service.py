"""API keys and tenants on their way from files to workers."""

import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fairlead.errors import ManifestError
from fairlead.fleet.model import Model, RequestPolicy
from fairlead.limits import Limits
from fairlead.tenants.model import Tenant, TenantTable
from fairlead_gateway import messages as say
from fairlead_gateway.tenants.messages import KeyUpdate, RevocationUpdate, TenantUpdate
from fairlead_gateway.tenants.supervisor.access_service import AccessService, AccessSources
from fairlead_gateway.tenants.supervisor.tenant_file import KeyFile, RevocationFile, TenantFile
from fairlead_gateway.tenants.supervisor.tenant_list import parse_tenant_file
from fairlead_testing.waiting import wait_until

OLD, NEW = "0a" * 32, "0b" * 32


def document(name: str, *digests: str, more: str = "") -> str:
    keys = ", ".join(f"{{name: key-{number}, digest: '{digest}'}}" for number, digest in enumerate(digests))
    head = f"---\napiVersion: serving.fairlead.io/v1alpha1\nkind: ModelTenant\nmetadata: {{name: {name}}}\n"
    return f"{head}spec:\n  keys: [{keys}]\n{more}"


class Received:
    """The messages that workers would get, applied as workers do."""

    def __init__(self) -> None:
        self.tenants: dict[str, Tenant] = {}
        self.names: dict[bytes, str] = {}
        self.revoked: set[bytes] = set()
        self.updates: list[TenantUpdate] = []

    def apply(self, message: Any) -> None:
        message = msgspec.msgpack.decode(msgspec.msgpack.encode(message), type=say.ToWorker)
        if isinstance(message, TenantUpdate):
            self.updates.append(message)
            for name in message.removed:
                del self.tenants[name]
            self.tenants |= {tenant.name: tenant for tenant in message.changed}
        elif isinstance(message, KeyUpdate):
            self.names = message.keys
        elif isinstance(message, RevocationUpdate):
            self.revoked = set(message.digests)

    def digests(self) -> set[str]:
        return {key.digest.hex() for tenant in self.tenants.values() for key in tenant.keys}


async def test_workers_get_what_changed_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "tenants.yaml"
    path.write_text("".join(document(f"t-{number}", f"{number:064x}") for number in range(200)))

    received = Received()
    service = AccessService(AccessSources(tenant_sources=[TenantFile(path, Limits())]), received.apply, lambda: 1_000.0)
    await service.start()
    try:
        received.tenants = dict(service.tenants)
        assert len(received.tenants) == 200
        text = "".join(
            document(f"t-{number}", f"{number:064x}", more="  weight: 2\n" if number == 7 else "")
            for number in range(199)
        )
        path.write_text(text)
        await wait_until(lambda: "t-199" not in received.tenants)
        assert received.updates == [
            TenantUpdate([Tenant("t-199")]),  # its key, before the file is parsed
            TenantUpdate([service.tenants["t-7"]], ["t-199"]),
        ]
        assert received.tenants == service.tenants
        path.write_text(
            "".join(document(f"t-{number}", f"{number:064x}", more="  weight: 3\n") for number in range(199))
        )
        await wait_until(lambda: received.tenants["t-198"].weight == 3)
        assert max(len(update.changed) for update in received.updates) <= 64
        assert received.tenants == service.tenants
    finally:
        await service.stop()


async def test_broken_document_revokes_only_what_it_lost(tmp_path: Path) -> None:
    path = tmp_path / "tenants.yaml"
    path.write_text(document("acme", OLD, NEW) + document("zeta", "0c" * 32))
    received = Received()
    service = AccessService(AccessSources(tenant_sources=[TenantFile(path, Limits())]), received.apply, lambda: 1_000.0)
    await service.start()
    try:
        received.tenants = dict(service.tenants)
        assert received.digests() == {OLD, NEW, "0c" * 32}
        path.write_text(document("acme", NEW, more="  weight: [\n") + document("zeta", "0c" * 32, more="  weight: 5\n"))
        await wait_until(lambda: received.tenants["zeta"].weight == 5)
        assert received.digests() == {NEW, "0c" * 32}
        assert any("not YAML" in warning for warning in service.warnings({}))
        path.unlink()
        await wait_until(lambda: any("cannot read" in warning for warning in service.warnings({})))
        assert received.digests() == {NEW, "0c" * 32}, "an unreadable file says nothing about keys"
    finally:
        await service.stop()


async def test_models_that_cannot_isolate_tenants_are_a_warning_while_tenants_want_it(tmp_path: Path) -> None:
    path = tmp_path / "tenants.yaml"
    path.write_text(document("acme", NEW))
    theirs = Model("chat", "theirs", requests=RequestPolicy(frozenset({"external"})))
    models = {theirs.key: theirs}
    service = AccessService(AccessSources(tenant_sources=[TenantFile(path, Limits())]), Received().apply, lambda: 1.0)
    await service.start()
    try:
        (warning,) = service.warnings(models)
        assert warning.startswith("engines of chat/theirs share cached prompts")
        assert service.warnings({}) == []
        assert service.warnings(models) == [warning]
        path.write_text(document("acme", NEW, more="  cacheSharing: Cluster\n"))
        await wait_until(lambda: service.warnings(models) == [])
    finally:
        await service.stop()


async def test_revocation_list_counts_while_everything_else_is_broken(tmp_path: Path) -> None:
    keys, tenants, revoked = tmp_path / "keys.yaml", tmp_path / "tenants.yaml", tmp_path / "revoked"
    keys.write_text(f"keys: [{{name: one, digest: '{OLD}'}}]")
    tenants.write_text(document("acme", NEW))
    received = Received()
    sources = AccessSources(KeyFile(keys, Limits()), [TenantFile(tenants, Limits())], RevocationFile(revoked))
    service = AccessService(sources, received.apply, lambda: 1_000.0)
    await service.start()
    try:
        assert received.names == {bytes.fromhex(OLD): "one"}
        assert service.warnings({}) == []
        keys.write_text("keys: [")
        tenants.write_text("{" + NEW)
        revoked.write_text(f"{OLD}\nno digest\n{NEW}\n")
        await wait_until(lambda: len(received.revoked) == 2)
        await wait_until(lambda: len(service.warnings({})) == 3)
        assert any(f"{revoked}: no digest on line 2" in warning for warning in service.warnings({}))
        assert received.names == {bytes.fromhex(OLD): "one"}
        revoked.unlink()
        await wait_until(
            lambda: any("the last list of revoked keys stays" in warning for warning in service.warnings({}))
        )
        assert service.revoked == [bytes.fromhex(OLD), bytes.fromhex(NEW)]
    finally:
        await service.stop()


async def test_worker_that_missed_messages_gets_the_whole_state(tmp_path: Path) -> None:
    tenants, revoked = tmp_path / "tenants.yaml", tmp_path / "revoked"
    tenants.write_text(document("acme", NEW))
    revoked.write_text(OLD)
    sources = AccessSources(None, [TenantFile(tenants, Limits())], RevocationFile(revoked))
    service = AccessService(sources, lambda _: None, lambda: 1_000.0)
    await service.start()
    await service.stop()
    assert service.state_messages() == [
        KeyUpdate({}, True),
        TenantUpdate(list(service.tenants.values()), is_whole=True),
        RevocationUpdate([bytes.fromhex(OLD)]),
    ]
    assert service.counters() == {"keys": 1}


async def test_changes_are_reported_with_the_keys_of_all_sources_and_their_authors(tmp_path: Path) -> None:
    tenants, keys, revoked = tmp_path / "tenants.yaml", tmp_path / "keys.yaml", tmp_path / "revoked"
    tenants.write_text(document("acme", OLD))
    keys.write_text(f"keys: [{{name: ci, digest: '{NEW}'}}]")
    tables: list[TenantTable] = []
    authors: list[str] = []

    def on_change(service: AccessService) -> None:
        tables.append(service.table())
        authors[:] = [service.author_of(name) for name in ("acme", "ci", "none")]

    sources = AccessSources(KeyFile(keys, Limits()), [TenantFile(tenants, Limits())], RevocationFile(revoked))
    service = AccessService(sources, Received().apply, lambda: 1_000.0, on_change=on_change)
    await service.start()
    try:
        assert len(tables) == 1  # once all sources were read
        assert {name: [key.digest.hex() for key in tenant.keys] for name, tenant in tables[0].tenants.items()} == {
            "acme": [OLD],
            "ci": [NEW],
        }
        assert authors == ["tenants file", "keys file", "unknown"]
        revoked.write_text(OLD)
        await wait_until(lambda: tables[-1].revoked == {bytes.fromhex(OLD)})
        keys.write_text("keys: []")
        await wait_until(lambda: set(tables[-1].tenants) == {"acme"})
    finally:
        await service.stop()


async def test_files_that_are_too_long_change_nothing_and_say_so(tmp_path: Path) -> None:
    keys, revoked, limits = tmp_path / "keys.yaml", tmp_path / "revoked", Limits(fleet_file_bytes=200)
    key_file, list_file = KeyFile(keys, limits), RevocationFile(revoked, limits.fleet_file_bytes)
    keys.write_text(f"keys: [{{name: a, digest: '{OLD}'}}]\n")
    revoked.write_text(f"{NEW}\n")
    await key_file.load()
    await list_file.load()
    for path in (keys, revoked):
        with path.open("a") as file:
            file.write("#" + "x" * 300)
    with pytest.raises(ManifestError, match="more than 200"):
        await key_file.load()
    await list_file.load()
    assert "more than 200" in str(list_file.problem)
    assert "the last list of revoked keys stays" in str(list_file.problem)
    assert (set(key_file.names_by_digest), list_file.digests) == ({bytes.fromhex(OLD)}, {bytes.fromhex(NEW)})


async def test_suspended_tenant_stops_before_its_file_is_parsed(tmp_path: Path) -> None:
    path, may_parse = tmp_path / "tenants.yaml", threading.Event()

    def parse(raw: bytes, name: str) -> Any:
        assert may_parse.wait(10)
        return parse_tenant_file(raw.decode(), file=name, limits=Limits())

    path.write_text(document("acme", OLD) + document("beta", NEW))
    file = TenantFile(path, Limits(), parse)
    may_parse.set()
    await file.start(lambda: None)
    may_parse.clear()
    path.write_text(document("acme", OLD, more="  suspended: true\n") + document("beta", NEW))
    await wait_until(lambda: file.tenants["acme"].is_suspended)
    assert not file.tenants["beta"].is_suspended
    may_parse.set()
    await file.stop()
