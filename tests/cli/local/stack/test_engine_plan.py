"""From manifests and options to engine processes."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from fairlead.api.v1alpha1 import API_VERSION, ModelTenant
from fairlead.engine_profile import builtin_profile
from fairlead.engines.registry import engine_adapter
from fairlead.errors import BadInput
from fairlead.fleet.model import EngineAuth, Role
from fairlead.limits import Limits
from fairlead.manifests.loader import Manifests, load_manifests
from fairlead.settings import GatewaySettings, read_settings
from fairlead_cli.addresses import Address, find_free_ports
from fairlead_cli.local.processes.embedded_redis import RedisServer
from fairlead_cli.local.processes.managed_process import ManagedProcess, ProcessPhase
from fairlead_cli.local.stack.component_commands import (
    DRAIN_VARIABLE,
    LOCAL_PEPPER,
    PEPPER_VARIABLE,
    StackConfig,
    autoscaler_command,
    gateway_command,
    indexer_command,
)
from fairlead_cli.local.stack.engine_plan import EnginePlan, PlanOptions, place_event_sockets, plan_engines
from fairlead_cli.local.stack.engine_process import EngineProcess, create_processes
from fairlead_cli.local.stack.launch import (
    UpOptions,
    build_config,
    bundled_example,
    check_workers,
    claim_addresses,
    default_hash_secret,
    find_tenant_files,
)
from fairlead_cli.local.stack.supervisor import GATEWAY_STOP_SECONDS
from fairlead_testing.local_stack import SMALL_MANIFEST

TWO_MODELS = """
apiVersion: serving.fairlead.io/v1alpha1
kind: ModelDeployment
metadata: {name: a}
spec:
  model: {uri: "hf://org/a"}
  engine: {type: VLLM, args: ["--max-model-len=4096", "--tensor-parallel-size=8"], env: [{name: HELLO, value: world}]}
  pools: [{acceleratorClassName: nvidia-l4, minReplicas: 2}, {name: more, acceleratorClassName: cpu}]
  slo: {ttft: 2s, ttftPerKiloToken: 200ms, tpot: 50ms}
---
apiVersion: serving.fairlead.io/v1alpha1
kind: ModelDeployment
metadata: {name: b, namespace: chat}
spec:
  model: {uri: "hf://org/b"}
  pools: [{acceleratorClassName: nvidia-l4}]
"""


WITH_ADAPTERS = """
apiVersion: serving.fairlead.io/v1alpha1
kind: ModelDeployment
metadata: {name: a}
spec:
  model: {uri: "hf://org/a"}
  engine: {type: VLLM, env: [{name: HELLO, value: world}]}
  adapters: {slots: 2, maxRank: 64, claimNames: [loras]}
  pools: [{acceleratorClassName: nvidia-l4}]
---
apiVersion: serving.fairlead.io/v1alpha1
kind: ModelAdapter
metadata: {name: sql}
spec: {base: a, source: "hf://org/sql", servedNames: [acme/sql], replicas: 1}
---
apiVersion: serving.fairlead.io/v1alpha1
kind: ModelAdapter
metadata: {name: claimed}
spec: {base: a, source: "pvc:loras/claimed"}
---
apiVersion: serving.fairlead.io/v1alpha1
kind: ModelAdapter
metadata: {name: lost}
spec: {base: a, source: "pvc:other/lost"}
"""


def find_no_program(program: str) -> str | None:
    return None


def find_any_program(program: str) -> str | None:
    return f"/usr/bin/{program}"


def manifests(directory: Path, text: str = TWO_MODELS) -> Manifests:
    file = directory / "models.yaml"
    file.write_text(text)
    return load_manifests([file])


def make_plan(directory: Path, **options: object) -> EnginePlan:
    return plan_engines(manifests(directory), PlanOptions(**options), find_program=find_no_program)  # type: ignore[arg-type]  # a test's own keywords


def test_skipped_files_of_a_folder_are_notes(tmp_path: Path) -> None:
    (tmp_path / "values.yaml").write_text("replicaCount: 1\n")
    (tmp_path / "models.yaml").write_text(TWO_MODELS)
    plan = plan_engines(load_manifests([tmp_path]), PlanOptions(real=True), find_program=find_any_program)
    assert plan.notes == (f"{tmp_path}/values.yaml: skipped: the file holds no Kubernetes object",)


def test_bundled_example_has_eight_engines() -> None:
    plan = plan_engines(load_manifests([bundled_example()]), PlanOptions(), find_program=find_no_program)
    assert plan.engines == 8
    assert [pool.label for pool in plan.pools] == ["main"]


def test_every_pool_of_every_model_is_planned(tmp_path: Path) -> None:
    plan = make_plan(tmp_path)
    assert [(pool.model.key, pool.name, pool.replicas, pool.label) for pool in plan.pools] == [
        ("default/a", "main", 2, "a/main"),
        ("default/a", "more", 1, "a/more"),
        ("chat/b", "main", 1, "b/main"),
    ]


def test_engines_are_simulated_for_every_engine_type(tmp_path: Path) -> None:
    pool = make_plan(tmp_path).pools[0]
    command = pool.command((9001,), 0)
    assert "fairlead_sim" in command.argv
    assert command.environment == {"HELLO": "world"}
    assert pool.template.engine == "sim"
    assert pool.says_ready


def _run(process: EngineProcess) -> EngineProcess:
    """Returns the process as one that is ready."""
    process.process = ManagedProcess.__new__(ManagedProcess)
    process.process.phase = ProcessPhase.READY
    return process


def test_engines_publish_kv_events_on_ports_that_the_fleet_states(tmp_path: Path) -> None:
    pool = make_plan(tmp_path).pools[0]
    engines = _run(EngineProcess(pool, 4, (9001, 9002), (9101, 9102, 9201, 9202)))
    assert [(one.kv_events, one.kv_replay) for one in engines.instances()] == [
        ("tcp://127.0.0.1:9101", "tcp://127.0.0.1:9201"),
        ("tcp://127.0.0.1:9102", "tcp://127.0.0.1:9202"),
    ]
    argv = EngineProcess(pool, 4, find_free_ports([1])[0], find_free_ports([2])[0]).command().argv
    assert argv[-4::2] == ("--kv-events", "--kv-replay")


def test_real_engines_publish_kv_events_on_unix_sockets_of_the_run_directory(tmp_path: Path) -> None:
    folder = Path("/run/user/1000/fairlead/up-1-a")
    plan = plan_engines(manifests(tmp_path), PlanOptions(real=True), find_program=find_any_program)
    pool = place_event_sockets(plan, folder).pools[0]
    (process,) = create_processes([(pool, 0, 1)])
    (port,), events, replay = process.ports, *_run(process).event_endpoints()[0]
    assert (process.event_ports, events, replay) == (
        (),
        f"ipc://{folder}/{port}.events",
        f"ipc://{folder}/{port}.replay",
    )
    assert [(one.kv_events, one.kv_replay) for one in process.instances()] == [(events, replay)]
    flag, _, config = process.command().argv[-1].partition("=")
    assert flag == "--kv-events-config"
    assert json.loads(config) == {
        "enable_kv_cache_events": True,
        "publisher": "zmq",
        "endpoint": events,
        "replay_endpoint": replay,
    }


def test_run_directory_with_a_path_too_long_for_sockets_is_a_note(tmp_path: Path) -> None:
    folder = Path("/run") / ("x" * 90)
    plan = plan_engines(manifests(tmp_path), PlanOptions(real=True), find_program=find_any_program)
    placed = place_event_sockets(plan, folder)
    assert all(pool.event_arguments is None for pool in placed.pools)
    assert placed.notes[-1].startswith(f"b/main: no KV events, since {folder} is too long for unix sockets")
    simulated = make_plan(tmp_path)
    assert place_event_sockets(simulated, folder) == simulated, "they have ports"


@pytest.mark.parametrize(
    ("spec", "real", "publishes"),
    [
        ("kvCache: {events: false}", False, False),
        ("kvCache: {events: false}", True, False),
        ("kvCache: {events: true}", False, True),
        ("kvCache: {events: true}", True, True),
        ("engine: {args: ['--kv-events-config={}']}", False, True),
        ("engine: {args: ['--kv-events-config={}']}", True, False),
        ("engine: {args: ['--data-parallel-size', '2']}", False, True),
        ("engine: {args: ['-dp=2']}", True, False),
        ("engine: {type: Sim, args: ['--kv-events', '0']}", False, False),
        ("engine: {type: Sim, args: ['--data-parallel-size', '2']}", False, False),
    ],
)
def test_a_manifest_decides_on_kv_events(tmp_path: Path, spec: str, real: bool, publishes: bool) -> None:
    text = SMALL_MANIFEST.replace("  pools:", f"  {spec}\n  pools:")
    plan = plan_engines(manifests(tmp_path, text), PlanOptions(real=real), find_program=find_any_program)
    assert (plan.pools[0].event_arguments is not None) is publishes


def test_ranks_of_a_real_engine_publish_no_kv_events_and_a_note_says_so(tmp_path: Path) -> None:
    text = SMALL_MANIFEST.replace("  pools:", "  engine: {args: ['--data-parallel-size=2']}\n  pools:")
    plan = plan_engines(manifests(tmp_path, text), PlanOptions(real=True), find_program=find_any_program)
    assert plan.notes == ("tiny: no KV events, since vLLM gives the ranks of an engine no unix sockets of their own",)


def test_ranks_of_a_simulated_engine_publish_kv_events_on_ports_of_their_own(tmp_path: Path) -> None:
    text = SMALL_MANIFEST.replace("  pools:", "  engine: {type: Sim, args: ['--data-parallel-size', '2']}\n  pools:")
    argv = (
        plan_engines(manifests(tmp_path, text), PlanOptions(), find_program=find_no_program)
        .pools[0]
        .command((9001,), 0)
        .argv
    )
    assert argv[argv.index("--kv-events") + 1] == "0"


def test_processes_have_ports_for_their_events(tmp_path: Path) -> None:
    pool = make_plan(tmp_path).pools[0]
    first, second = create_processes([(pool, 0, 3), (replace(pool, event_arguments=None), 3, 2)])
    assert (len(first.ports), len(first.event_ports)) == (3, 6)
    assert (len(second.ports), second.event_ports) == (2, ())
    assert first.event_ports[:3] == tuple(range(first.event_ports[0], first.event_ports[0] + 3))
    assert len({*first.ports, *first.event_ports, *second.ports}) == 11


def test_engine_command_has_the_served_name(tmp_path: Path) -> None:
    named = TWO_MODELS.replace('{uri: "hf://org/a"}', '{uri: "hf://org/a", servedNames: [org/a-name]}')
    plan = plan_engines(manifests(tmp_path, named), PlanOptions(), find_program=find_no_program)
    argv = plan.pools[0].command((9001,), 0).argv
    assert argv[argv.index("--served-model-name") + 1] == "org/a-name"
    assert [pool.template.served_name for pool in plan.pools] == ["org/a-name", "org/a-name", None]


def test_engines_of_a_pool_get_its_arguments(tmp_path: Path) -> None:
    pools = "{name: more, acceleratorClassName: cpu}"
    given = TWO_MODELS.replace(pools, "{name: more, acceleratorClassName: cpu, args: [--max-model-len=1024]}")
    plan = plan_engines(manifests(tmp_path, given), PlanOptions(), find_program=find_no_program)
    lengths = []
    for pool in plan.pools[:2]:
        argv = pool.command((9001,), 0).argv
        lengths.append([word for word in argv if word.rpartition("=")[2] in ("4096", "1024")])
    assert [words[-1].rpartition("=")[2] for words in lengths] == ["4096", "1024"]


def test_arguments_for_real_engines_become_a_note(tmp_path: Path) -> None:
    plan = make_plan(tmp_path)
    assert "--max-model-len=4096" in plan.pools[0].command((9001,), 0).argv
    assert plan.notes == ("a: no effect on simulated engines: --tensor-parallel-size=8",)


def test_several_ignored_arguments_make_one_note(tmp_path: Path) -> None:
    file = tmp_path / "m.yaml"
    file.write_text(
        SMALL_MANIFEST.replace("  pools:", '  engine: {args: ["--dtype", "bfloat16", "--enforce-eager"]}\n  pools:')
    )
    plan = plan_engines(load_manifests([file]), PlanOptions(), find_program=find_no_program)
    assert plan.notes == ("tiny: no effect on simulated engines: --dtype bfloat16, --enforce-eager",)


def test_every_engine_has_its_own_seed(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, seed=100)
    commands = [pool.command((9001,), first) for pool in plan.pools for first in range(pool.replicas)]
    seeds = [command.argv[command.argv.index("--seed") + 1] for command in commands]
    assert seeds == ["100", "101", "102", "103"]


def test_speed_scales_targets_profiles_and_engine_arguments(tmp_path: Path) -> None:
    slow, fast = make_plan(tmp_path).pools[0], make_plan(tmp_path, speed=4.0).pools[0]
    assert fast.model.objectives.ttft_seconds == 0.5
    assert fast.model.objectives.ttft_per_kilo_token_seconds == 0.05
    assert fast.model.objectives.itl_seconds == 0.0125
    assert fast.template.profile is not None
    assert slow.template.profile is not None
    assert fast.template.profile == slow.template.profile.sped_up(4.0)
    argv = fast.command((9001,), 0).argv
    assert argv[argv.index("--speed") + 1] == "4"
    assert argv[argv.index("--profile") + 1] == slow.template.profile.name


def test_preset_option_applies_to_every_model(tmp_path: Path) -> None:
    assert {pool.model.routing.preset for pool in make_plan(tmp_path, preset="round-robin").pools} == {"round-robin"}


def test_engines_per_process_fill_processes_in_order(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, engines_per_process=4)
    assert [pool.process_sizes() for pool in plan.pools] == [[2], [1], [1]]
    assert plan_engines(
        load_manifests([bundled_example()]), PlanOptions(engines_per_process=3), find_program=find_no_program
    ).pools[0].process_sizes() == [
        3,
        3,
        2,
    ]


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"speed": 0.0}, "--speed"),
        ({"speed": float("nan")}, "--speed"),
        ({"speed": float("inf")}, "--speed"),
        ({"speed": 1e9}, "--speed"),
        ({"engines_per_process": 0}, "--engines-per-process"),
        ({"engines_per_process": 257}, "--engines-per-process"),
        ({"preset": "random"}, "--preset"),
        ({"real": True}, "--real"),
        ({"real": True, "speed": 2.0}, "--speed"),
        ({"real": True, "engines_per_process": 2}, "--engines-per-process"),
    ],
)
def test_invalid_option_is_named(tmp_path: Path, options: dict[str, object], field: str) -> None:
    with pytest.raises(BadInput) as error:
        make_plan(tmp_path, **options)
    assert error.value.field == field


def test_real_option_starts_installed_vllm(tmp_path: Path) -> None:
    plan = plan_engines(manifests(tmp_path), PlanOptions(real=True), find_program=find_any_program)
    pool = plan.pools[0]
    command = pool.command((9001,), 0)
    assert command.argv[:3] == ("vllm", "serve", "org/a")
    assert "--tensor-parallel-size=8" in command.argv
    assert not pool.says_ready
    assert plan.notes == ()
    assert pool.template.engine == "vllm"
    assert engine_adapter("vllm").health_path == "/health"


def test_real_engines_ask_for_a_key_that_only_the_stack_knows(tmp_path: Path) -> None:
    options = PlanOptions(real=True, engine_token="k" * 64)
    pool = plan_engines(manifests(tmp_path), options, find_program=find_any_program).pools[0]
    assert pool.command((9001,), 0).environment["VLLM_API_KEY"] == "k" * 64
    assert "k" * 64 not in pool.command((9001,), 0).argv
    assert pool.template.access == EngineAuth(token_env="ENGINE_TOKEN")
    simulated = make_plan(tmp_path).pools[0]
    assert "VLLM_API_KEY" not in simulated.command((9001,), 0).environment
    assert not simulated.template.access.has_token


def test_unloadable_model_source_is_refused_before_start(tmp_path: Path) -> None:
    text = TWO_MODELS.replace("hf://org/b", "s3://bucket/b")
    with pytest.raises(BadInput, match="s3"):
        plan_engines(manifests(tmp_path, text), PlanOptions(real=True), find_program=find_any_program)


def test_stack_without_engines_is_refused(tmp_path: Path) -> None:
    text = TWO_MODELS.split("---")[1].replace("nvidia-l4}", "nvidia-l4, minReplicas: 0}")
    with pytest.raises(BadInput, match="no pool has a replica"):
        plan_engines(manifests(tmp_path, text), PlanOptions(), find_program=find_no_program)


def test_listen_and_manage_need_different_ports() -> None:
    with pytest.raises(BadInput, match="--manage"):
        claim_addresses("127.0.0.1:39021", "127.0.0.1:39021")
    first, second = claim_addresses(":0", ":0")
    assert first.port != second.port


def test_non_loopback_address_needs_insecure() -> None:
    with pytest.raises(BadInput, match="--insecure"):
        claim_addresses("0.0.0.0:0", ":0")
    assert claim_addresses("0.0.0.0:0", ":0", insecure=True)[0].host == "0.0.0.0"


@pytest.mark.parametrize("number", [0, -3, 65])
def test_workers_must_be_from_1_to_64(number: int) -> None:
    with pytest.raises(BadInput, match="--workers"):
        check_workers(number)
    assert (check_workers(1), check_workers(64)) == (1, 64)


def test_hash_secret_is_derived_from_seed_else_random() -> None:
    assert default_hash_secret(3) == default_hash_secret(3) != default_hash_secret(4)
    assert default_hash_secret(None) != default_hash_secret(None)


@pytest.mark.parametrize(("variable", "expected"), [("given", "given"), ("", "seed 3")])
def test_environment_secret_wins_and_empty_is_unset(
    variable: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAIRLEAD_HASH_SECRET", variable)
    options = UpOptions(listen=":0", manage=":0", seed=3, redis=False)
    assert build_config(options).secret == expected


def test_adapters_are_served_by_simulated_engines(tmp_path: Path) -> None:
    plan = plan_engines(manifests(tmp_path, WITH_ADAPTERS), PlanOptions(), find_program=find_no_program)
    (pool,) = plan.pools
    assert pool.model.adapter_slots == 2
    assert {adapter.name: adapter.source for adapter in pool.model.adapters} == {
        "sql": "org/sql",
        "claimed": "/var/lib/fairlead/adapters/loras/claimed",
    }
    command = pool.command((9001,), 0).argv
    assert command[command.index("--max-loaded-loras") + 1] == "2"
    assert plan.notes[:2] == (
        "sql: no effect in local mode: spec.servedNames, spec.replicas",
        "lost: not served: the engines of a do not mount the claim other: add it to its spec.adapters.claimNames",
    )


def test_adapters_are_served_by_real_engines_that_can_load_them(tmp_path: Path) -> None:
    plan = plan_engines(manifests(tmp_path, WITH_ADAPTERS), PlanOptions(real=True), find_program=find_any_program)
    (pool,) = plan.pools
    assert [adapter.name for adapter in pool.model.adapters] == ["sql"]
    launched = pool.command((9001,), 0)
    assert {"--enable-lora", "--max-loras=2", "--max-lora-rank=64"} <= set(launched.argv)
    assert launched.environment["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "1"
    assert launched.environment["HELLO"] == "world"
    assert "claimed: not served: a real engine of local mode has no claims" in plan.notes


def test_downloads_of_adapters_are_left_out_with_real_engines(tmp_path: Path) -> None:
    text = WITH_ADAPTERS.replace("claimNames: [loras]", "download: {}").replace("hf://org/sql", "s3://loras/sql")
    plan = plan_engines(manifests(tmp_path, text), PlanOptions(real=True), find_program=find_any_program)
    assert plan.pools[0].model.adapters == ()
    assert "sql: not served: a real engine of local mode has no downloader" in plan.notes


def test_stack_kills_no_gateway_that_still_drains(tmp_path: Path) -> None:
    config = StackConfig(EnginePlan(()), Address("127.0.0.1", 8080), Address("127.0.0.1", 8081), "secret")
    environment = gateway_command(tmp_path, config, None).environment
    settings = read_settings(GatewaySettings, {DRAIN_VARIABLE: str(environment[DRAIN_VARIABLE])})
    assert 0 < settings.limits()["drain_seconds"] < GATEWAY_STOP_SECONDS < Limits().drain_seconds


def test_only_gateway_and_indexer_get_the_key_of_real_engines(tmp_path: Path) -> None:
    config = StackConfig(EnginePlan(()), Address("127.0.0.1", 8080), Address("127.0.0.1", 8081), "secret")
    redis = RedisServer((), "redis://127.0.0.1:1/0", port=1)
    for token, expected in (("", None), ("k" * 64, "k" * 64)):
        config = replace(config, engine_token=token)
        indexer = indexer_command(tmp_path, config, redis)
        autoscaler = autoscaler_command(tmp_path, config, Address("127.0.0.1", 8082))
        assert indexer is not None
        assert autoscaler is not None
        assert gateway_command(tmp_path, config, redis).environment.get("ENGINE_TOKEN") == expected
        assert indexer.environment.get("ENGINE_TOKEN") == expected
        assert "ENGINE_TOKEN" not in autoscaler.environment


def test_gateway_follows_the_files_with_tenants(tmp_path: Path) -> None:
    config = StackConfig(EnginePlan(()), Address("127.0.0.1", 8080), Address("127.0.0.1", 8081), "secret")
    command = gateway_command(tmp_path, config, None)
    assert "--tenants" not in command.argv
    assert PEPPER_VARIABLE not in command.environment
    files = (tmp_path / "a.yaml", tmp_path / "b.yaml")
    command = gateway_command(tmp_path, replace(config, tenant_files=files), None)
    assert command.argv[-4:] == ("--tenants", str(files[0]), "--tenants", str(files[1]))
    assert command.environment[PEPPER_VARIABLE] == LOCAL_PEPPER


def test_tenants_come_from_files_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tenant = ModelTenant.model_validate(
        {"apiVersion": API_VERSION, "kind": "ModelTenant", "metadata": {"name": "acme"}, "spec": {}}
    )
    loaded = Manifests((), {}, (tenant,), ("tenants.yaml",))
    assert find_tenant_files(loaded) == (tmp_path / "tenants.yaml",)
    with pytest.raises(BadInput, match="cannot come from standard input"):
        find_tenant_files(replace(loaded, tenant_files=("-",)))


HEAD = """\
apiVersion: serving.fairlead.io/v1alpha1
kind: ModelDeployment
metadata: {name: a}
spec:
"""
SPLIT = (
    HEAD
    + """\
  model: {uri: "hf://a/b"}
  engine: {type: KIND}
  pools:
    - {name: first, role: Prefill, acceleratorClassName: nvidia-h100}
    - {name: then, role: Decode, acceleratorClassName: nvidia-h100, minReplicas: 2}
    - {name: both, acceleratorClassName: nvidia-h100}
  kvCache: {transfer: Mooncake}
"""
)
EXTERNAL = (
    HEAD
    + """\
  model: {uri: "hf://a/b"}
  engine: {type: External}
  pools:
    - {endpoints: [{url: "http://10.0.0.5"}, {url: "https://[fd00::2]:8443/"}]}
    - {name: known, acceleratorClassName: nvidia-l4, endpoints: [{url: "http://10.0.0.6:9000"}]}
"""
)
EVERYTHING = (
    HEAD
    + """\
  model: {uri: "hf://a/b", revision: v1, credentials: {secretRef: {name: s}}, cache: {size: 1Gi}}
  engine:
    image: mine
    imagePullSecrets: [{name: r}]
    env: [{name: A, value: b}, {name: B, valueFrom: {fieldRef: {fieldPath: status.podIP}}}]
  pools:
    - acceleratorClassName: nvidia-l4
      parallelism: {tensor: 2}
      minReplicas: 2
      maxReplicas: 4
      template: {spec: {priorityClassName: high}}
  replicas: 3
  kvCache: {offload: {memory: 1Gi}}
  adapters: {claimNames: [loras]}
  autoscaling: {mode: Auto}
  rollout: {paused: true}
"""
)


def plan_of_fields(directory: Path, text: str, *, real: bool = False) -> EnginePlan:
    (directory / "m.yaml").write_text(text)
    return plan_engines(load_manifests([directory / "m.yaml"]), PlanOptions(real=real), find_program=lambda name: name)


def test_fields_without_effect_become_notes(tmp_path: Path) -> None:
    plan = plan_of_fields(tmp_path, EVERYTHING)
    assert plan.notes == (
        "a: no effect in local mode: spec.model.revision, spec.model.credentials, spec.model.cache, spec.engine.image, "
        "spec.engine.imagePullSecrets, spec.engine.env[1].valueFrom, spec.pools[0].parallelism, spec.pools[0].template, "
        "spec.kvCache.offload, spec.adapters.claimNames, spec.rollout",
        "a: not scaled, since spec.replicas sets the number",
    )
    (pool,) = plan.pools
    assert pool.replicas == 3
    assert pool.command((9001,), 0).environment == {"A": "b"}


@pytest.mark.parametrize("kind", ["SGLang", "Custom, image: mine"])
def test_unsupported_engine_types_are_simulated(tmp_path: Path, kind: str) -> None:
    text = (
        HEAD + f'  model: {{uri: "hf://a/b"}}\n  engine: {{type: {kind}}}\n  pools: [{{acceleratorClassName: cpu}}]\n'
    )
    (pool,) = plan_of_fields(tmp_path, text).pools
    assert "fairlead_sim" in pool.command((9001,), 0).argv


@pytest.mark.parametrize(
    ("text", "field", "hint"),
    [
        (SPLIT.replace("KIND", "VLLM"), "spec.pools[0].role", "leave --real out, or use the role Serve"),
        (SPLIT.replace("KIND", "SGLang"), "spec.engine.type", "leave --real out to simulate it"),
        (EVERYTHING, "spec.model.revision", "remove it, or leave --real out"),
        (EVERYTHING.replace("revision: v1, ", ""), "spec.engine.env[1].valueFrom", "remove it, or leave --real out"),
        (
            HEAD
            + '  model: {uri: "hf://a/b"}\n  pools: [{acceleratorClassName: cpu, parallelism: {nodes: 2, tensor: 2}}]\n',
            "spec.pools[0].parallelism",
            "remove it, or leave --real out",
        ),
    ],
)
def test_real_engine_with_unsupported_fields_is_refused(tmp_path: Path, text: str, field: str, hint: str) -> None:
    with pytest.raises(BadInput) as error:
        plan_of_fields(tmp_path, text, real=True)
    assert error.value.field == field
    assert (error.value.hint or "").startswith(hint)


@pytest.mark.parametrize(("kind", "transfer"), [("VLLM", "mooncake"), ("SGLang", "sglang")])
def test_prefill_and_decode_pools_are_simulated(tmp_path: Path, kind: str, transfer: str) -> None:
    plan = plan_of_fields(tmp_path, SPLIT.replace("KIND", kind))
    tails = [pool.command((9001,), 0).argv[-4:] for pool in plan.pools]
    assert tails[:2] == [
        ("--kv-connector", transfer, "--kv-role", "kv_producer"),
        ("--kv-connector", transfer, "--kv-role", "kv_consumer"),
    ]
    assert "--kv-connector" not in tails[2]
    templates = [pool.template for pool in plan.pools]
    assert [(template.role, template.transfer) for template in templates] == [
        (Role.PREFILL, transfer),
        (Role.DECODE, transfer),
        (Role.SERVE, None),
    ]


def test_prefill_instances_have_a_bootstrap_url(tmp_path: Path) -> None:
    first, then, _ = plan_of_fields(tmp_path, SPLIT.replace("KIND", "VLLM")).pools
    assert EngineProcess(first, 0, (9001,)).bootstrap_url("http://127.0.0.1:9001") == "http://127.0.0.1:9001"
    assert EngineProcess(then, 0, (9002,)).bootstrap_url("http://127.0.0.1:9002") is None


def test_external_engines_are_adopted_not_started(tmp_path: Path) -> None:
    plan = plan_of_fields(tmp_path, EXTERNAL, real=True)
    assert plan.engines == 3
    assert [pool.process_sizes() for pool in plan.pools] == [[], []]
    instances = [instance for pool in plan.pools for instance in pool.adopted]
    assert [(instance.id, instance.url) for instance in instances] == [
        ("10.0.0.5/80/0", "http://10.0.0.5:80"),
        ("fd00::2/8443/0", "https://[fd00::2]:8443"),
        ("10.0.0.6/9000/0", "http://10.0.0.6:9000"),
    ]
    assert [instance.profile for instance in instances] == [None, None, builtin_profile("l4-qwen8b")]


def test_pod_selector_is_refused(tmp_path: Path) -> None:
    text = EXTERNAL.replace('endpoints: [{url: "http://10.0.0.6:9000"}]', "selector: {matchLabels: {app: a}}")
    with pytest.raises(BadInput, match="no pods that a selector could find") as error:
        plan_of_fields(tmp_path, text)
    assert error.value.field == "spec.pools[1].selector"
