"""Values that the installation generates, as the processes read them."""

import base64
import hashlib
import hmac
import json
import re
from pathlib import Path
from typing import Any

import pytest

from fairlead.fleet.endpoint_address import ENDPOINT_SECRETS_FOLDER
from fairlead.fleet.file import parse_fleet_file
from fairlead.limits import Limits
from fairlead.settings import GatewaySettings, OperatorSettings, read_settings, variable_name
from fairlead_gateway.__main__ import _parse_arguments as gateway_options
from fairlead_gateway.bearer_tokens.supervisor.issuer_file import parse_issuer_file
from fairlead_kvstore.redis.address import parse_redis_url
from fairlead_operator.__main__ import _flags as operator_options
from fairlead_operator.settings import parse_options
from fairlead_testing.kube.helm import HelmError, pod_specs, render_chart
from fairlead_testing.yaml_documents import load_document


def secrets(manifests: list[dict[str, Any]]) -> dict[str, dict[str, str]]:
    return {
        manifest["metadata"]["name"]: {key: base64.b64decode(value).decode() for key, value in manifest["data"].items()}
        for manifest in manifests
        if manifest["kind"] == "Secret"
    }


def plain(container: dict[str, Any]) -> dict[str, str]:
    return {variable["name"]: variable["value"] for variable in container.get("env", []) if "value" in variable}


@pytest.mark.parametrize("turn", range(4))
def test_gateway_knows_the_first_key_by_its_digest(program: Path, turn: int) -> None:
    """Each rendering generates a key, and the template computes its digest."""
    drawn = secrets(render_chart(program, fresh=True))["fairlead-keys"]
    digest = hmac.new(drawn["pepper"].encode(), drawn["first-key"].encode(), hashlib.sha256).hexdigest()
    assert load_document(drawn["keys.yaml"]) == {"keys": [{"name": "first", "digest": digest}]}
    assert len(drawn["first-key"]) > 40


def test_generated_values_are_never_repeated(program: Path) -> None:
    first, second = (secrets(render_chart(program, fresh=True)) for _ in range(2))
    for name, data in first.items():
        for key, value in data.items():
            assert value != second[name][key], f"{name} {key}"


def test_gateway_gets_the_redis_password(program: Path) -> None:
    drawn = secrets(render_chart(program))["fairlead-redis"]
    assert drawn["url"] == f"redis://:{drawn['password']}@fairlead-redis:6379/0"
    assert f"requirepass {drawn['password']}\n" in drawn["redis.conf"]


def test_gateway_does_not_see_the_first_key(program: Path) -> None:
    volumes = pod_specs(render_chart(program))["Deployment fairlead-gateway"]["volumes"]
    keys = next(volume["projected"]["sources"] for volume in volumes if volume["name"] == "keys")
    shown = [(item["key"], key["secret"].get("optional", False)) for key in keys for item in key["secret"]["items"]]
    assert shown == [("keys.yaml", False), ("revoked", True)]


def test_the_list_of_revoked_keys_is_followed_apart_and_kept(program: Path) -> None:
    manifests = render_chart(program)
    (revoked,) = (manifest for manifest in manifests if manifest["metadata"]["name"] == "fairlead-revoked-keys")
    assert "data" not in revoked, "an upgrade would bring revoked keys back"
    assert revoked["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    (container,) = pod_specs(manifests)["Deployment fairlead-gateway"]["containers"]
    assert gateway_options(container["args"]).kube_revoked == revoked["metadata"]["name"]
    for value in ("auth.enabled=false", "gateway.fleet.models[0].name=tiny"):
        others = render_chart(program, f"--set={value}")
        assert not any("revoked-keys" in manifest["metadata"]["name"] for manifest in others)


def test_own_keys_and_redis_leave_nothing_to_generate(program: Path) -> None:
    own = ("--set=auth.keysSecret=ours", "--set=redis.enabled=false", "--set=redis.urlSecret=theirs")
    manifests = render_chart(program, *own)
    assert set(secrets(manifests)) == {"fairlead-gateway"}
    env = pod_specs(manifests)["Deployment fairlead-gateway"]["containers"][0]["env"]
    named = {entry["name"]: entry["valueFrom"]["secretKeyRef"]["name"] for entry in env if "valueFrom" in entry}
    assert (named["FAIRLEAD_KEY_PEPPER"], named["FAIRLEAD_REDIS_URL"]) == ("ours", "theirs")


@pytest.mark.parametrize(
    "url",
    [
        "redis://ours:6379/0",
        "redis+sentinel://a:26379\\,b:26379/main/0",
        "rediss+cluster://a\\,b",
        "unix:///run/redis.sock",
    ],
)
def test_redis_without_password_is_supported(program: Path, url: str) -> None:
    specs = pod_specs(render_chart(program, "--set=redis.enabled=false", f"--set=redis.url={url}"))
    given = plain(specs["Deployment fairlead-gateway"]["containers"][0])["FAIRLEAD_REDIS_URL"]
    assert given == url.replace("\\", "")
    assert parse_redis_url(given).url == given


def test_operator_accepts_its_variables_and_options(program: Path, case: Path) -> None:
    specs = pod_specs(render_chart(program, f"--values={case}"))
    (container,) = next(pod for name, pod in specs.items() if name.endswith("-operator"))["containers"]
    environment = plain(container)
    known = {variable_name(name) for name in OperatorSettings.__dataclass_fields__}
    assert environment.keys() <= known
    chosen = parse_options(read_settings(OperatorSettings, environment))
    assert operator_options(container["args"]).port == container["ports"][0]["containerPort"]
    if chosen.installation.peers is not None:
        there = {next(iter(pod["containers"]))["name"] for pod in specs.values()}
        named = {peer.labels["app.kubernetes.io/component"] for peer in chosen.installation.peers}
        assert named == there & {"gateway", "indexer", "autoscaler"}
    assert "Sim" in chosen.installation.images


def test_gateway_accepts_its_variables_and_options(program: Path, case: Path) -> None:
    specs = pod_specs(render_chart(program, f"--values={case}"))
    (container,) = next(pod for name, pod in specs.items() if name.endswith("-gateway"))["containers"]
    known = {variable_name(name) for name in GatewaySettings.__dataclass_fields__}
    assert {variable["name"] for variable in container["env"]} <= known
    chosen = gateway_options(container["args"])
    assert chosen.insecure is not bool(chosen.keys)
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert (chosen.listen, chosen.manage) == (f"0.0.0.0:{ports['http']}", f"0.0.0.0:{ports['manage']}")
    assert (chosen.kube is None) is bool(chosen.fleet)
    folders = [mount["mountPath"] for mount in container["volumeMounts"]]
    for path in filter(None, (chosen.fleet, chosen.keys, chosen.tls_cert, chosen.tls_key)):
        assert str(Path(path).parent) in folders


FLEET_PROCESSES = ("Deployment serving-gateway", "Deployment serving-indexer")


def test_processes_of_the_fleet_find_the_keys_of_its_engines(program: Path) -> None:
    """Gateways send requests to engines, and indexers ask them for their settings."""
    rendered = render_chart(program, f"--values={Path(__file__).parent / 'values' / 'production.yaml'}")
    config = next(
        manifest for manifest in rendered if manifest["kind"] == "ConfigMap" and "fleet.yaml" in manifest["data"]
    )
    fleet = parse_fleet_file(config["data"]["fleet.yaml"], file="fleet.yaml", limits=Limits())
    named = {instance.access for group in fleet.instances.values() for instance in group if instance.access.has_token}
    assert len(named) == 2
    for process in FLEET_PROCESSES:
        pod = pod_specs(rendered)[process]
        secret_of = {volume["name"]: volume["secret"]["secretName"] for volume in pod["volumes"] if "secret" in volume}
        folders = {
            mount["mountPath"]: secret_of[mount["name"]]
            for mount in pod["containers"][0]["volumeMounts"]
            if mount["name"] in secret_of and mount["readOnly"]
        }
        for access in named:
            for file in (access.token_file, access.ca_file):
                folder = Path(str(file)).parent
                assert folders[str(folder)] == folder.name


def test_keys_of_engines_are_in_no_rendered_object(program: Path) -> None:
    rendered = render_chart(program, f"--values={Path(__file__).parent / 'values' / 'production.yaml'}")
    assert {manifest["metadata"]["name"] for manifest in rendered if manifest["kind"] == "Secret"} == {
        "serving-gateway"
    }


MODEL = """
gateway:
  fleet:
    models: [{name: tiny, instances: [{url: "https://gpu-1.example.com", auth: {AUTH}}]}]
    secrets: [SECRET]
"""


@pytest.mark.parametrize(
    ("auth", "named", "message"),
    [
        ("tokenEnv: KEY", "", "gateways of the chart have no variable KEY: write tokenFile"),
        (
            "tokenFile: /etc/fairlead/engine-secrets/mine/key",
            "other",
            "gateway.fleet.secrets does not have the Secret of /etc/fairlead/engine-secrets/mine/key",
        ),
    ],
)
def test_keys_that_no_process_finds_are_refused(
    program: Path, tmp_path: Path, auth: str, named: str, message: str
) -> None:
    values = tmp_path / "values.yaml"
    values.write_text(MODEL.replace("AUTH", auth).replace("SECRET", named))
    with pytest.raises(HelmError, match=re.escape(message)):
        render_chart(program, f"--values={values}")


def test_secrets_of_engines_need_models_of_a_fleet_file(program: Path) -> None:
    with pytest.raises(HelmError, match="has no effect without"):
        render_chart(program, "--set=gateway.fleet.secrets={mine}")


def test_token_issuers_are_a_file_of_the_gateway(program: Path) -> None:
    entry = {
        "issuer": "https://login.example.com",
        "audiences": ["fairlead"],
        "jwksUrl": "https://login.example.com/keys",
    }
    manifests = render_chart(program, f"--set-json=auth.tokenIssuers={json.dumps([entry])}")
    (config,) = (manifest for manifest in manifests if manifest["metadata"]["name"] == "fairlead-gateway-token-issuers")
    text = config["data"]["issuers.yaml"]
    (issuer,) = parse_issuer_file(text.encode(), Path("issuers.yaml"), Limits())
    assert (issuer.issuer, issuer.audiences, issuer.jwks_url) == (entry["issuer"], ["fairlead"], entry["jwksUrl"])
    pod = pod_specs(manifests)["Deployment fairlead-gateway"]
    (mount,) = (mount for mount in pod["containers"][0]["volumeMounts"] if mount["name"] == "token-issuers")
    assert f"--token-issuers={mount['mountPath']}/issuers.yaml" in pod["containers"][0]["args"]
    assert any(volume.get("configMap", {}).get("name") == config["metadata"]["name"] for volume in pod["volumes"])


ENDPOINTS = "externalEngines.namespaces={chat,search}"


def test_gateways_alone_have_the_secrets_of_endpoints_by_namespace(program: Path) -> None:
    values = (f"--set={ENDPOINTS}", "--set=externalEngines.secrets.chat={provider,provider}")
    manifests = render_chart(program, *values, "--set=externalEngines.secrets.search={provider}")
    mounted = {}
    for name, spec in pod_specs(manifests).items():
        named = {
            volume["name"]: volume["secret"]
            for volume in spec.get("volumes", [])
            if volume["name"].startswith("endpoint-")
        }
        for container in spec["containers"]:
            for mount in container.get("volumeMounts", []):
                if mount["name"] in named:
                    assert mount["readOnly"]
                    mounted[name, mount["mountPath"]] = named[mount["name"]]
    secret = {"secretName": "provider", "optional": True}
    gateway = next(name for name in pod_specs(manifests) if "gateway" in str(name))
    assert mounted == {
        (gateway, f"{ENDPOINT_SECRETS_FOLDER}/{namespace}/provider"): secret for namespace in ("chat", "search")
    }


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (("externalEngines.secrets.other={provider}",), "models of the namespace other may not name endpoints"),
        (("gateway.fleet.models[0].name=a", "externalEngines.secrets.chat={provider}"), "has no effect with"),
        (("externalEngines.secrets.chat={a b}",), "does not match pattern"),
    ],
)
def test_secrets_that_no_endpoint_could_name_are_refused(program: Path, values: tuple[str, ...], message: str) -> None:
    with pytest.raises(HelmError, match=message):
        render_chart(program, f"--set={ENDPOINTS}", *(f"--set={value}" for value in values))
