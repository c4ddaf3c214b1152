"""`fairlead convert --cluster` on a real API server with the CRDs of the earlier release."""

import asyncio
import json
import subprocess
import sys
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from fairlead.api.v1alpha1 import AcceleratorClass, ModelDeployment
from fairlead.kube.client import KubeApi
from fairlead.kube.errors import Invalid, KubeError
from fairlead.kube.resources import (
    MODEL_DEPLOYMENTS,
    Manifest,
    Resource,
    key_of,
    name_of,
    namespace_of,
    resource_of,
)
from fairlead.manifests.convert import convert_document
from fairlead.runtime.clock import SystemClock
from fairlead_cli.cluster.conversion import convert_objects
from fairlead_operator.render import CURRENT_VERSION, render_model
from fairlead_testing.kube.api_server import ApiServer, api_server_for_test
from fairlead_testing.kube.render_cases import default_context
from fairlead_testing.waiting import wait_until_async

pytestmark = [pytest.mark.api_server, pytest.mark.timeout(300)]
ROOT = Path(__file__).parents[3]
EARLIER_CRDS = Path(__file__).with_name("earlier-crds.yaml")
EXAMPLES = sorted((ROOT / "tests" / "fairlead" / "manifests" / "earlier").glob("*.yaml"))
RENDER = ROOT / "tests" / "operator" / "render"
CASES = sorted((RENDER / "earlier").glob("*.yaml"))
ADVICE = "apply the CRDs of the earlier release again, then convert"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ApiServer]:
    """A server of its own, because CRDs belong to a whole cluster."""
    with api_server_for_test(tmp_path / "run") as found:
        yield found


def convert(server: ApiServer, *words: str) -> subprocess.CompletedProcess[str]:
    options = ("--cluster", f"--kubeconfig={server.kubeconfig}", *words)
    command = [sys.executable, "-m", "fairlead_cli", "convert", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def documents(path: Path) -> list[Manifest]:
    return [one for one in yaml.safe_load_all(path.read_text()) if one]


def earlier_objects() -> Iterator[Manifest]:
    """Yields the objects of all examples and render cases. Each file has a namespace."""
    classes: dict[str, Manifest] = {}
    for path in (*EXAMPLES, *CASES):
        for one in documents(path):
            if one["kind"] == "ModelDeployment":
                yield {**one, "metadata": {"name": name_of(one), "namespace": f"of-{path.stem}"}}
            elif one["kind"] == "AcceleratorClass":
                classes.setdefault(name_of(one), one)
    yield from classes.values()


def is_applied(one: Manifest) -> bool:
    """Half of the objects are applied; the others are created."""
    return len(key_of(one)) % 2 == 0


async def replace_crds(api: KubeApi, *paths: Path) -> None:
    for crd in (one for path in paths for one in documents(path)):
        await api.apply(crd, "test")
    await wait_until_async(lambda: api.has_resource(MODEL_DEPLOYMENTS))


async def stored(api: KubeApi, one: Manifest) -> Manifest:
    return await api.get(resource_of(one), namespace_of(one), name_of(one))


async def put_earlier_objects(api: KubeApi) -> list[Manifest]:
    """Applies the earlier CRDs and objects. Returns the objects as stored."""
    await replace_crds(api, EARLIER_CRDS)
    written = list(earlier_objects())
    for namespace in sorted({namespace_of(one) for one in written} - {None}):
        await api.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}, "test")
    for one in written:
        await (api.apply(one, "kubectl") if is_applied(one) else api.create(one, "kubectl-create"))
    return [await stored(api, one) for one in written]


def run(server: ApiServer, check: Any) -> None:
    async def main() -> None:
        async with KubeApi(server.config(), SystemClock(), lambda: 0.5) as api:
            await check(api)

    asyncio.run(main())


def test_all_objects_are_converted_before_the_crds_are_replaced(server: ApiServer) -> None:
    async def check(api: KubeApi) -> None:
        earlier = await put_earlier_objects(api)
        expected = [convert_document(one).document["spec"] for one in earlier]
        changed = [one["spec"] != spec for one, spec in zip(earlier, expected, strict=True)]

        dry = await asyncio.to_thread(convert, server, "--dry-run")
        assert (dry.returncode, dry.stderr.splitlines()[-1]) == (
            0,
            f"{sum(changed)} of {len(earlier)} objects would be converted; nothing was written: "
            "repeat the command without --dry-run before you replace the CRDs",
        )
        assert [await stored(api, one) for one in earlier] == earlier, "a dry run writes nothing"

        done = await asyncio.to_thread(convert, server)
        assert done.returncode == 0, done.stderr
        assert done.stderr.splitlines()[-1].startswith(
            f"{sum(changed)} of {len(earlier)} objects converted; now replace the CRDs "
        )
        assert done.stdout == dry.stdout
        found = [await stored(api, one) for one in earlier]
        for one, spec in zip(found, expected, strict=True):
            assert one["spec"] == spec, key_of(one)
        printed = {key_of(one): one["spec"] for one in yaml.safe_load_all(done.stdout)}
        assert printed == {
            key_of(one): one["spec"] for one, before in zip(found, earlier, strict=True) if one != before
        }

        await replace_crds(api, *sorted((ROOT / "crds").glob("*.yaml")))
        await wait_until_async(lambda: is_refused(api, earlier[0]))
        for before, now in zip(earlier_objects(), found, strict=True):
            converted = convert_document(before).document
            if is_applied(before):  # its owner keeps its fields, and gets no conflict
                await api.apply(converted, "kubectl", force=False)
            else:
                await api.replace(now, "kubectl-edit")
            assert (await stored(api, now))["spec"] == now["spec"]
        again = await asyncio.to_thread(convert, server)
        assert (again.returncode, again.stdout) == (0, "")
        check_pods({key_of(one): one for one in found})

    run(server, check)


async def is_refused(api: KubeApi, earlier: Manifest) -> bool:
    """Returns True once the API server refuses earlier words, after it has the new schema."""
    try:
        await api.apply(
            {**earlier, "metadata": {"name": "probe", "namespace": namespace_of(earlier)}}, "test", dry_run=True
        )
    except Invalid:
        return True
    except KubeError as error:
        return "unknown field" in error.message
    return False


def check_pods(found: dict[str, Manifest]) -> None:
    """Renders the stored objects. They give the objects of the earlier release.

    The API server sorts the keys of a template, so that only sorted texts are the same bytes.
    """
    for path in CASES:
        (model,) = (one for one in documents(path) if one["kind"] == "ModelDeployment")
        now = ModelDeployment.model_validate({**model, "spec": found[f"of-{path.stem}/{name_of(model)}"]["spec"]})
        classes = {
            name_of(one): AcceleratorClass.model_validate({**one, "spec": found[name_of(one)]["spec"]})
            for one in documents(path)
            if one["kind"] == "AcceleratorClass"
        }
        rendered = render_model(now, classes, default_context())
        golden = (RENDER / "golden" / f"v{CURRENT_VERSION}" / path.name).read_text(encoding="utf-8")
        assert sorted_text(rendered.manifests) == sorted_text(yaml.safe_load_all(golden)), path.name


def sorted_text(manifests: Iterable[Manifest]) -> str:
    return "\n".join(json.dumps(one, sort_keys=True) for one in manifests)


def test_backup_of_earlier_objects_returns_under_the_earlier_crds(server: ApiServer) -> None:
    """Steps 2 and 3 of the way back in `docs/migrate/from-0.1.md`."""

    async def check(api: KubeApi) -> None:
        earlier = await put_earlier_objects(api)
        done = await asyncio.to_thread(convert, server)
        assert done.returncode == 0, done.stderr
        await replace_crds(api, *sorted((ROOT / "crds").glob("*.yaml")))
        await wait_until_async(lambda: is_refused(api, earlier[0]))

        await replace_crds(api, EARLIER_CRDS)
        restored = (await asyncio.to_thread(cleaned, page_program(), earlier))["items"]
        for one in restored:
            assert one["metadata"].keys() <= {"name", "namespace", "labels", "annotations", "finalizers"}
            await wait_until_async(lambda one=one: is_replaced(api, one))
        found = [await stored(api, one) for one in restored]
        assert [one["spec"] for one in found] == [one["spec"] for one in earlier]
        assert [one["metadata"]["uid"] for one in found] == [one["metadata"]["uid"] for one in earlier]

    run(server, check)


def page_program() -> str:
    """Returns the program of the page that makes a backup fit for `kubectl replace`."""
    page = (ROOT / "docs" / "migrate" / "from-0.1.md").read_text(encoding="utf-8")
    return textwrap.dedent(page.partition("python3 -c '\n")[2].partition("    ' < backup.json")[0])


def cleaned(program: str, objects: list[Manifest]) -> Any:
    """Returns what the program of the page makes of a backup."""
    backup = json.dumps({"items": objects})
    done = subprocess.run([sys.executable, "-c", program], input=backup, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


async def is_replaced(api: KubeApi, one: Manifest) -> bool:
    """Replaces an object as `kubectl replace` does: with the version that is stored.

    False while the API server still serves the newer CRDs.
    """
    version = (await stored(api, one))["metadata"]["resourceVersion"]
    try:
        await api.replace({**one, "metadata": {**one["metadata"], "resourceVersion": version}}, "kubectl-replace")
    except Invalid:
        return False
    return bool((await stored(api, one))["spec"] == one["spec"])


class BusyApi(KubeApi):
    """An API where the operator writes the status of every model after it was listed."""

    async def list(self, resource: Resource, *args: Any, **options: Any) -> Any:
        listed = await super().list(resource, *args, **options)
        for item in listed.items if resource is MODEL_DEPLOYMENTS else ():
            metadata = {"name": name_of(item), "namespace": namespace_of(item)}
            body = {"apiVersion": resource.api_version, "kind": resource.kind, "metadata": metadata}
            await self.apply_status({**body, "status": {"ready": "1/1"}}, "fairlead-operator")
        return listed


def test_objects_are_converted_while_their_statuses_are_written(server: ApiServer) -> None:
    async def main() -> None:
        async with BusyApi(server.config(), SystemClock(), lambda: 0.5) as api:
            earlier = await put_earlier_objects(api)
            assert await convert_objects(api, dry_run=False) == 0
            expected = [convert_document(one).document["spec"] for one in earlier]
            assert [(await stored(api, one))["spec"] for one in earlier] == expected

    asyncio.run(main())


def test_object_that_cannot_be_converted_is_named_and_nothing_is_written(server: ApiServer) -> None:
    async def check(api: KubeApi) -> None:
        earlier = await put_earlier_objects(api)
        wrong = next(one for one in earlier if key_of(one) == "of-smallest/qwen3-8b")
        objectives = {"spec": {"objectives": {"ttft": "1s", "target": 0.95000000001}}}
        await api.patch_merge(MODEL_DEPLOYMENTS, namespace_of(wrong), name_of(wrong), objectives, "kubectl-edit")
        before = [await stored(api, one) for one in earlier]
        done = await asyncio.to_thread(convert, server)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith("ModelDeployment of-smallest/qwen3-8b: spec.slo.target: ")
        assert [await stored(api, one) for one in earlier] == before

    run(server, check)


async def shows(api: KubeApi, objects: list[Manifest]) -> bool:
    """Returns True if the API server shows the specs of these objects."""
    return [one["spec"] for one in objects] == [(await stored(api, one))["spec"] for one in objects]


def test_crds_that_were_replaced_first_are_reported_and_nothing_is_lost(server: ApiServer) -> None:
    async def check(api: KubeApi) -> None:
        earlier = await put_earlier_objects(api)
        crds = sorted((ROOT / "crds").glob("*.yaml"))
        await replace_crds(api, *crds)
        await wait_until_async(lambda: is_refused(api, earlier[0]))
        done = await asyncio.to_thread(convert, server)
        assert done.returncode == 1
        assert ADVICE in done.stderr

        await replace_crds(api, EARLIER_CRDS)
        await wait_until_async(lambda: shows(api, earlier))
        assert (await asyncio.to_thread(convert, server)).returncode == 0

    run(server, check)


def test_object_written_under_the_new_crds_is_reported_until_its_backup_is_back(server: ApiServer) -> None:
    """A status that is written while the API server hides the spec stores what is left of it."""

    async def check(api: KubeApi) -> None:
        earlier = await put_earlier_objects(api)
        backup = next(one for one in earlier if key_of(one) == "of-smallest/qwen3-8b")
        await replace_crds(api, *sorted((ROOT / "crds").glob("*.yaml")))
        await wait_until_async(lambda: is_refused(api, earlier[0]))
        status = {name: backup[name] for name in ("apiVersion", "kind", "metadata")} | {"status": {"ready": "0/1"}}
        status["metadata"] = {"name": name_of(backup), "namespace": namespace_of(backup)}
        await api.apply_status(status, "fairlead-operator")

        await replace_crds(api, EARLIER_CRDS)
        others = [one for one in earlier if one is not backup]
        await wait_until_async(lambda: shows(api, others))
        done = await asyncio.to_thread(convert, server)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.splitlines() == [
            "ModelDeployment of-smallest/qwen3-8b: its fields were lost: the object was written while the CRDs of "
            "another release hid them (replace it by your backup, or delete it, then convert)"
        ]

        (restored,) = (await asyncio.to_thread(cleaned, page_program(), [backup]))["items"]
        assert await is_replaced(api, restored)
        assert (await asyncio.to_thread(convert, server)).returncode == 0

    run(server, check)


def test_cluster_without_fairlead_has_nothing_to_convert(server: ApiServer) -> None:
    done = convert(server)
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.startswith("nothing to convert: 0 objects")


def test_unreachable_cluster_exits_3(tmp_path: Path) -> None:
    config = {
        "clusters": [{"name": "a", "cluster": {"server": "https://127.0.0.1:9"}}],
        "contexts": [{"name": "a", "context": {"cluster": "a", "user": "a"}}],
        "users": [{"name": "a", "user": {"token": "t"}}],
        "current-context": "a",
    }
    path = tmp_path / "config"
    path.write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "fairlead_cli", "convert", "--cluster", f"--kubeconfig={path}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (3, "")
    assert "127.0.0.1:9" in done.stderr
