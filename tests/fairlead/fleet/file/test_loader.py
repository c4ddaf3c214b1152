"""The fleet file: it reads into a Fleet and back, and errors name their line."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.engine_profile import EngineProfile, builtin_profile, builtin_profiles
from fairlead.errors import FileProblem, ManifestError
from fairlead.fleet.file import format_fleet_file, parse_fleet_file, write_fleet_file
from fairlead.fleet.model import (
    KV_TRANSFERS,
    EngineAuth,
    Fleet,
    Instance,
    InstanceState,
    Model,
    ModelRouting,
    RequestPolicy,
    Role,
    RoutingPreset,
    SloTargets,
    StreamResume,
    TokenPrice,
    UnknownFields,
)
from fairlead.limits import Limits

FLEET_TEXT = """\
models:
  - name: tiny
    objectives: {ttft: 2s, itl: 50ms}
    routing: {preset: dual-hash}
    instances:
      - {url: "http://127.0.0.1:9001", engine: vllm}
"""


def problems(text: str, limits: Limits | None = None) -> tuple[FileProblem, ...]:
    with pytest.raises(ManifestError) as caught:
        parse_fleet_file(text, file="fleet.yaml", limits=limits)
    return caught.value.problems


def only_problem(text: str) -> tuple[int, str, str, str]:
    (problem,) = problems(text)
    return problem.line, problem.field, problem.message, problem.fix


def test_documented_file_is_parsed() -> None:
    fleet = parse_fleet_file(FLEET_TEXT, file="fleet.yaml")
    objectives = SloTargets(ttft_seconds=2.0, itl_seconds=0.05)
    assert fleet.models == {"default/tiny": Model("default", "tiny", objectives)}
    (instance,) = fleet.instances["default/tiny"]
    assert instance == Instance("127.0.0.1/9001/0", "default", "tiny", "main", "http://127.0.0.1:9001")


def test_every_instance_field_is_parsed() -> None:
    text = FLEET_TEXT.replace(
        "engine: vllm}",
        "engine: sim, id: a/1/0, pool: p, role: Serve, state: Draining, weight: 2, adapters: [x, 'y'], dpRank: 3, "
        "kvEvents: 'tcp://127.0.0.1:5557', kvReplay: 'tcp://127.0.0.1:5558', profile: 910b4}",
    )
    (instance,) = parse_fleet_file(text, file="fleet.yaml").instances["default/tiny"]
    assert instance == Instance(
        "a/1/0", "default", "tiny", "p", "http://127.0.0.1:9001", "sim", Role.SERVE, InstanceState.DRAINING,
        frozenset({"x", "y"}), 2.0, builtin_profile("910b4"), None, None, 3, "tcp://127.0.0.1:5557", "tcp://127.0.0.1:5558",
    )  # fmt: skip


def test_profile_is_a_changed_preset_or_custom() -> None:
    text = FLEET_TEXT.replace("engine: vllm}", "profile: {preset: 910b4, kvTokens: 7}}")
    (instance,) = parse_fleet_file(text, file="fleet.yaml").instances["default/tiny"]
    assert instance.profile == replace(builtin_profile("910b4"), name="tiny-main", kv_tokens=7)
    text = FLEET_TEXT.replace("engine: vllm}", "profile: {name: mine, prefillTokenSeconds: 1.0e-4}}")
    (instance,) = parse_fleet_file(text, file="fleet.yaml").instances["default/tiny"]
    assert instance.profile == EngineProfile("mine", 1e-4)


ENGINE = '{url: "https://a:1"'


def test_served_name_comes_from_the_model_unless_overridden() -> None:
    model = "models:\n  - name: tiny\n    servedModelName: Qwen/Qwen3-8B\n    instances:\n"
    more = ["}", ", id: b, servedModelName: other}", ", id: c, servedModelName: tiny}"]
    fleet = parse_fleet_file(model + "".join(f"      - {ENGINE}{rest}\n" for rest in more), file="f")
    assert [instance.served_name for instance in fleet.instances["default/tiny"]] == ["Qwen/Qwen3-8B", "other", None]
    assert parse_fleet_file(format_fleet_file(fleet), file="f") == fleet


def test_auth_comes_from_the_model_unless_overridden() -> None:
    model = "models:\n  - name: tiny\n    tls: {caFile: /ca}\n    auth: {tokenEnv: TOKEN}\n    instances:\n"
    more = ["}", ", id: b, tls: {caFile: /b}}", ", id: c, auth: {tokenFile: /t}}"]
    instances = parse_fleet_file(model + "".join(f"      - {ENGINE}{rest}\n" for rest in more), file="f").instances[
        "default/tiny"
    ]
    assert [instance.access for instance in instances] == [
        EngineAuth("/ca", "TOKEN"),
        EngineAuth("/b", "TOKEN"),
        EngineAuth("/ca", None, "/t"),
    ]


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ("tls: {caFile: ca.pem}", "tls.caFile"),
        ("tls: {}", "tls.caFile"),
        ("auth: {}", "auth"),
        ("auth: {tokenEnv: A, tokenFile: /t}", "auth"),
        ("auth: {tokenEnv: a b}", "auth.tokenEnv"),
        ("auth: {tokenEnv: FAIRLEAD_KEY_PEPPER}", "auth.tokenEnv"),
        ("auth: {tokenFile: t}", "auth.tokenFile"),
    ],
)
def test_invalid_auth_is_named(more: str, field: str) -> None:
    text = f"models:\n  - name: tiny\n    instances:\n      - {ENGINE}, {more}}}\n"
    assert only_problem(text)[:2] == (4, f"models[0].instances[0].{field}")


def test_id_is_stable_when_another_instance_is_added() -> None:
    before = parse_fleet_file(FLEET_TEXT, file="fleet.yaml").instances["default/tiny"]
    text = FLEET_TEXT.replace("    instances:\n", '    instances:\n      - {url: "http://127.0.0.1:9000"}\n')
    assert before[0] in parse_fleet_file(text, file="fleet.yaml").instances["default/tiny"]


@pytest.mark.parametrize(
    ("url", "kept", "id"),
    [
        ("http://[::1]:8000/", "http://[::1]:8000", "::1/8000/0"),
        ("http://engine.example", "http://engine.example:80", "engine.example/80/0"),
        ("https://[::1]/", "https://[::1]:443", "::1/443/0"),
        ("https://engine.example:8443", "https://engine.example:8443", "engine.example/8443/0"),
        ("HTTP://Engine:1", "http://engine:1", "engine/1/0"),
        ("https://engine.example/a/v1", "https://engine.example:443/a", "engine.example/443/a/0"),
    ],
)
def test_urls_are_normalized(url: str, kept: str, id: str) -> None:
    (instance,) = parse_fleet_file(FLEET_TEXT.replace("http://127.0.0.1:9001", url), file="f").instances["default/tiny"]
    assert (instance.url, instance.id) == (kept, id)


@pytest.mark.parametrize(
    "url",
    ["", "127.0.0.1:9001", "ftp://a:1", "unix://a:1", "http://", "http://:80", "http://a:0", "http://a:99999",
     "http://u:p@a:1", "http://a:1/a b", "http://a:1?x", "http://a:1#x", "http://a b:1", "http://é:1", "http://[::1", "http://a:x"],
)  # fmt: skip
def test_invalid_engine_urls_are_refused(url: str) -> None:
    line, field, message, fix = only_problem(FLEET_TEXT.replace("http://127.0.0.1:9001", url))
    assert (line, field) == (6, "models[0].instances[0].url")
    assert message.startswith(("not an engine's URL", "not an endpoint's URL"))
    assert "http://127.0.0.1:8000" in fix or "https://api.example.com/v1" in fix


@pytest.mark.parametrize(
    ("old", "new", "line", "field", "message", "fix"),
    [
        ("routing:", "routting:", 4, "models[0].routting", "unknown field", "did you mean routing?"),
        ("ttft: 2s", "ttft: 2", 3, "models[0].objectives.ttft", "2 has no unit", "write 2ms or 2s"),
        ("ttft: 2s", "ttft: 2 s", 3, "models[0].objectives.ttft", "'2 s' is not a duration", "write it like 800ms, 2s or 1m30s"),
        ("ttft: 2s", "ttft: 0s", 3, "models[0].objectives.ttft", "must be longer than 0 seconds",
         "write a duration such as 800ms, or leave the field out"),
        ("name: tiny", "name: 12", 2, "models[0].name", "must be text, not the number 12", "put it in quotes"),
        ("name: tiny", "name: ''", 2, "models[0].name", "the model name is empty or longer than 253 bytes",
         "use a name of 1 to 253 bytes without control characters"),
        ("name: tiny", "name: tiny\n    namespace: A_b", 3, "models[0].namespace", '"A_b" is not a namespace',
         "use lower-case letters, digits and -, at most 63"),
        ("dual-hash", "dualhash", 4, "models[0].routing.preset",
         f'must be one of {", ".join(RoutingPreset)}, not "dualhash"', "did you mean dual-hash?"),
        ("engine: vllm", "engine: tgi", 6, "models[0].instances[0].engine",
         'must be one of vllm, sglang, llamacpp, trtllm, sim, openai, not "tgi"', "write the type of the engine"),
        ("engine: vllm", "state: ready", 6, "models[0].instances[0].state",
         'must be one of Starting, Ready, Draining, Sleeping, not "ready"', "did you mean Ready?"),
        ("engine: vllm", "role: Prefill", 6, "models[0].instances[0].role",
         "a Prefill instance needs a KV transfer protocol",
         "add `kvTransfer: nixl | mooncake | sglang` to the instance or its model"),
        ("engine: vllm", "kvTransfer: telepathy", 6, "models[0].instances[0].kvTransfer",
         'must be one of nixl, mooncake, sglang, not "telepathy"', "write the KV transfer protocol of the engines"),
        ("engine: vllm", "servedModelName: 'a b'", 6, "models[0].instances[0].servedModelName",
         '"a b" is not a valid served name',
         "use 1 to 253 of letters, digits and . _ / : @ + -, such as Qwen/Qwen3-8B"),
        ("engine: vllm", "weight: 0", 6, "models[0].instances[0].weight", "must be more than 0, not 0",
         "write a number that is more than 0"),
        ("engine: vllm", "weight: .nan", 6, "models[0].instances[0].weight", "must be a finite number, not nan",
         "write a plain number"),
        ("engine: vllm", "weight: '2'", 6, "models[0].instances[0].weight", 'must be a number, not the text "2"',
         "write it without quotes"),
        ("engine: vllm", "dpRank: 1.5", 6, "models[0].instances[0].dpRank", "must be a whole number, not the number 1.5",
         "write a whole number"),
        ("engine: vllm", "id: 'a b'", 6, "models[0].instances[0].id", '"a b" is not an instance id',
         "use 1 to 253 visible ASCII characters without spaces"),
        ("engine: vllm", "profile: h100", 6, "models[0].instances[0].profile.preset", 'no engine profile is called "h100"',
         f"use one of {', '.join(sorted(builtin_profiles()))}, or give coefficients"),
        ("engine: vllm", "kvEvents: localhost", 6, "models[0].instances[0].kvEvents", '"localhost" has the wrong form',
         "write it for example `kvEvents: tcp://127.0.0.1:5557`"),
        ("engine: vllm", "kvEvents: 'ipc://events'", 6, "models[0].instances[0].kvEvents",
         '"ipc://events" has the wrong form', "write it for example `kvEvents: tcp://127.0.0.1:5557`"),
        ('url: "http://127.0.0.1:9001", ', "", 6, "models[0].instances[0].url", "is missing",
         "add it, for example `url: http://127.0.0.1:9001`"),
    ],
)  # fmt: skip
def test_mistake_is_named_with_line_field_and_fix(
    old: str, new: str, line: int, field: str, message: str, fix: str
) -> None:
    assert only_problem(FLEET_TEXT.replace(old, new, 1)) == (line, field, message, fix)


def test_all_mistakes_are_reported_in_file_order() -> None:
    text = FLEET_TEXT.replace("name: tiny", "nam: tiny").replace("2s", "x").replace("vllm", "y")
    assert [problem.line for problem in problems(text)] == [2, 2, 3, 6]


def test_empty_field_counts_as_absent() -> None:
    fleet = parse_fleet_file(FLEET_TEXT.replace("{preset: dual-hash}", ""), file="f")
    assert fleet.models["default/tiny"].routing.preset == "dual-hash"
    assert only_problem("models:\n")[2] == "is missing"


def test_empty_file_and_multiple_documents_are_refused() -> None:
    assert only_problem("# nothing\n")[2] == "the file is empty"
    assert only_problem(FLEET_TEXT + "---\n" + FLEET_TEXT)[2] == "2 YAML documents, but a fleet file has one"


def test_fleet_without_models_or_instances_is_valid() -> None:
    assert parse_fleet_file("models: []\n", file="f").models == {}
    assert parse_fleet_file("models: [{name: a}]\n", file="f").instances == {"default/a": ()}


def test_duplicate_model_is_refused() -> None:
    line, field, message, _ = only_problem("models:\n  - name: a\n  - name: b\n  - {name: a, namespace: default}\n")
    assert (line, field, message) == (4, "models[2].name", "the model default/a is already given on line 2")


def test_duplicate_engine_is_refused_without_its_own_id() -> None:
    twice = "models:\n  - name: a\n    instances:\n      - url: http://e:1\n      - url: http://e:1/\n"
    line, field, message, fix = only_problem(twice)
    assert (line, field) == (5, "models[0].instances[1]")
    assert message == "the instance e/1/0 is already given on line 4"
    assert "`id:`" in fix
    assert len(parse_fleet_file(twice.replace("/\n", "/\n        dpRank: 1\n"), file="f").instances["default/a"]) == 2


def test_more_models_or_instances_than_the_limits_are_refused() -> None:
    text = FLEET_TEXT + '      - {url: "http://127.0.0.1:9002"}\n'
    (problem,) = problems(text, Limits(instances=1))
    assert problem.message == "there are 2 instances; at most 1 are served"
    (problem,) = problems("models: [{name: a}, {name: b}]\n", Limits(models=1))
    assert problem.message == "there are 2 models; at most 1 are served"


def test_price_is_exact_and_cached_tokens_cost_as_much_as_others_by_default() -> None:
    prices = ['{input: "0.40", output: "1.2"}', '{input: "0.40", cachedInput: "0", output: "0.001"}', ""]
    text = "models:\n" + "".join(f"  - {{name: m{at}, price: {price}}}\n" for at, price in enumerate(prices))
    models = parse_fleet_file(text, file="f").models
    token_prices = [models[f"default/m{at}"].price for at in range(len(prices))]
    assert token_prices == [TokenPrice(400, 400, 1200), TokenPrice(400, 0, 1), None]


def test_cost_of_a_request_is_the_sum_of_its_tokens() -> None:
    price = TokenPrice(400, 100, 1200)
    assert (price.cost(1000, 600, 50), price.saved(600)) == (160_000 + 60_000 + 60_000, 180_000)
    assert price.cost(1000, 600, 50) + price.saved(600) == price.cost(1000, 0, 50)


NAMES = st.text("abcdefgmnop-.:/ #&*!éß日\u2028\ufeff0123456789", min_size=1, max_size=12).map(lambda text: f"m{text}")
SECONDS = st.floats(1e-6, 1e5)
COSTS = st.floats(0, 10)
PROFILES = st.sampled_from(sorted(builtin_profiles())).map(builtin_profile) | st.builds(
    EngineProfile,
    name=NAMES,
    prefill_token_seconds=st.floats(1e-9, 1.0),
    attention_seconds=COSTS,
    hit_token_seconds=COSTS,
    cpu_token_seconds=COSTS,
    store_token_seconds=COSTS,
    kv_tokens=st.integers(1, 10**9),
)


PLACES = st.sampled_from(["/etc/ca: 1.pem", "/a/b"])
ACCESS = st.builds(EngineAuth, st.none() | PLACES, st.sampled_from([None, "TOKEN", "t_2"])) | st.builds(
    EngineAuth, token_file=PLACES
)


@st.composite
def fleets(draw: st.DrawFn) -> Fleet:
    """Fleets of up to three models with up to three instances each."""
    models: dict[str, Model] = {}
    instances: dict[str, tuple[Instance, ...]] = {}
    for number, name in enumerate(draw(st.lists(NAMES, max_size=3, unique=True))):
        ttft = draw(st.none() | SECONDS)
        objectives = SloTargets(
            target=draw(st.floats(0.01, 1)),
            ttft_seconds=ttft,
            ttft_per_kilo_token_seconds=draw(SECONDS) if ttft is not None else 0.0,
            itl_seconds=draw(st.none() | SECONDS),
        )
        model = Model(
            draw(st.sampled_from(["default", "chat"])),
            name,
            objectives,
            ModelRouting(
                draw(st.sampled_from(["session", "dual-hash"])),
                draw(st.none() | st.integers(1, 10)),
                draw(st.sampled_from(StreamResume)),
            ),
            wakes=draw(st.booleans()),
            context_length=draw(st.none() | st.integers(1, 1 << 30)),
        )
        policy = RequestPolicy(
            unknown_fields=draw(st.sampled_from(UnknownFields)),
            allowed_fields=draw(st.frozensets(st.sampled_from(["priority", "lora_path", "x.y-z"]))),
            allowed_paths=draw(st.frozensets(st.sampled_from(["/v1/files", "/v1/files/*"]))),
            sets_priority=draw(st.booleans()),
        )
        price = draw(st.none() | st.builds(TokenPrice, st.integers(5, 10**6), st.integers(0, 5), st.integers(0, 10**6)))
        models[model.key] = replace(model, requests=policy, price=price)
        instances[model.key] = tuple(
            Instance(
                id=f"pod-{number}/{port}/0",
                namespace=model.namespace,
                model=name,
                pool="p",
                url=f"http://10.0.0.1:{port}",
                engine=draw(st.sampled_from(["vllm", "sim"])),
                state=draw(st.sampled_from(InstanceState)),
                adapters=frozenset(draw(st.lists(NAMES, max_size=2))),
                weight=draw(st.floats(0.01, 100)),
                profile=draw(st.none() | PROFILES),
                dp_rank=draw(st.none() | st.integers(0, 9)),
                kv_events=draw(st.sampled_from([None, "tcp://10.0.0.1:5557", "ipc:///run/a b/events"])),
                role=draw(st.sampled_from(Role)),
                replica_nano_usd_per_hour=draw(
                    st.none() | st.integers(0, 10**15 - 1).map(lambda micros: micros * 1000)
                ),
                transfer=draw(st.sampled_from(KV_TRANSFERS)),
                bootstrap=draw(st.none() | st.just("http://10.0.0.1:8998")),
                access=draw(ACCESS),
                served_name=draw(st.sampled_from([None, "Qwen/Qwen3-8B@main", "/models/tiny"])),
            )
            for port in sorted(draw(st.sets(st.integers(1000, 9999), max_size=3)))
        )
    return Fleet(1, 1, dict(sorted(models.items())), instances)


@given(fleets())
def test_formatted_fleet_parses_back(fleet: Fleet) -> None:
    assert parse_fleet_file(format_fleet_file(fleet), file="f") == fleet


def test_atomic_write_leaves_one_world_readable_file(tmp_path: Path) -> None:
    path = tmp_path / "fleet.yaml"
    for text in (FLEET_TEXT, FLEET_TEXT.replace("tiny", "other")):
        fleet = parse_fleet_file(text, file="f")
        write_fleet_file(path, fleet)
        assert parse_fleet_file(path.read_text(), file="f") == fleet
        assert os.listdir(tmp_path) == ["fleet.yaml"]
    assert path.stat().st_mode & 0o777 == 0o644


def test_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "fleet.yaml"
    path.mkdir()
    with pytest.raises(OSError, match=r"fleet\.yaml"):
        write_fleet_file(path, parse_fleet_file(FLEET_TEXT, file="f"))
    assert os.listdir(tmp_path) == ["fleet.yaml"]
