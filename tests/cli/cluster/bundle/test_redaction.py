"""Redaction of objects and logs: what stays, and what is removed."""

from typing import Any

import pytest

from fairlead_cli.cluster.bundle.redaction import (
    PROMPT_LINE_PLACEHOLDER,
    REDACTED_PLACEHOLDER,
    Scrubber,
    redact_manifest,
)

SCRUB = Scrubber(["hunter2hunter", "no", "aHVudGVyMmh1bnRlcg=="])


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Authorization: Bearer abcdefgh123", f"Authorization: Bearer {REDACTED_PLACEHOLDER}"),
        ("redis://:pw123@host:6379/0", f"redis://{REDACTED_PLACEHOLDER}@host:6379/0"),
        ("https://user:pw@host/x", f"https://{REDACTED_PLACEHOLDER}@host/x"),
        ("redis://:p@ss@host:6379/0", f"redis://{REDACTED_PLACEHOLDER}@host:6379/0"),
        ("redis://:p/a@ss@host", f"redis://{REDACTED_PLACEHOLDER}@host"),
        ('at "redis://:p/s@host", x@y', f'at "redis://{REDACTED_PLACEHOLDER}@host", x@y'),
        ("password=12345678", f"password={REDACTED_PLACEHOLDER}"),
        ("password=2024-spring", f"password={REDACTED_PLACEHOLDER}"),
        ('password: "a, b; \\"c"', f'password: "{REDACTED_PLACEHOLDER}"'),
        ('"{\\"password\\": \\"abc\\"}"', f'"{{\\"password\\": \\"{REDACTED_PLACEHOLDER}\\"}}"'),
        ("x: token=87654321", f"x: token={REDACTED_PLACEHOLDER}"),
        ("api_key=['abc', 'def'], port=1", f"api_key={REDACTED_PLACEHOLDER}, port=1"),
        ("vllm serve --hf-token abc --port 80", f"vllm serve --hf-token {REDACTED_PLACEHOLDER} --port 80"),
        ("['--api-key', 'abc', '--port']", f"['--api-key', '{REDACTED_PLACEHOLDER}', '--port']"),
        ("https://a.blob/x?sv=1&sig=ab%2Fc%3D&se=2", f"https://a.blob/x?sv=1&sig={REDACTED_PLACEHOLDER}&se=2"),
        ("https://s3/x?X-Amz-Signature=abc&y=1", f"https://s3/x?X-Amz-Signature={REDACTED_PLACEHOLDER}&y=1"),
        ("AIzaSyA1234567890abcdefghijklmnopqrstuv", REDACTED_PLACEHOLDER),
        ("nvapi-abcdefgh_ijkl-1234", REDACTED_PLACEHOLDER),
        ("dapi0123456789abcdef0123456789abcdef-2", REDACTED_PLACEHOLDER),
        ("Cookie: session=abc; theme=dark", f"Cookie: {REDACTED_PLACEHOLDER}"),
        ("(b'set-cookie', b'session=abc; Path=/')", f"(b'set-cookie', b'{REDACTED_PLACEHOLDER}')"),
        ("AccountKey=abcd==;EndpointSuffix=x", f"AccountKey={REDACTED_PLACEHOLDER};EndpointSuffix=x"),
        ("X-Api-Key: abc", f"X-Api-Key: {REDACTED_PLACEHOLDER}"),
        ("token=abc, x", f"token={REDACTED_PLACEHOLDER}, x"),
        ("HF_TOKEN=hf_abcdefghijk", f"HF_TOKEN={REDACTED_PLACEHOLDER}"),
        ('{"SecretAccessKey": "zzz/z+z"}', f'{{"SecretAccessKey": "{REDACTED_PLACEHOLDER}"}}'),
        ("{'SecretAccessKey': 'zzz'}", f"{{'SecretAccessKey': '{REDACTED_PLACEHOLDER}'}}"),
        ("requirepass zzz", f"requirepass {REDACTED_PLACEHOLDER}"),
        ("SG.abcdefghijklmnop.qrstuvwxyz0123456789", REDACTED_PLACEHOLDER),
        ("clientSecret: zzz", f"clientSecret: {REDACTED_PLACEHOLDER}"),
        ("password='zzz'", f"password='{REDACTED_PLACEHOLDER}'"),
        ("a hunter2hunter b", f"a {REDACTED_PLACEHOLDER} b"),
        ("key sk-abcdefghijkl", f"key {REDACTED_PLACEHOLDER}"),
        ("AKIAABCDEFGHIJKLMNOP", REDACTED_PLACEHOLDER),
        ("nvapi-abcdefghijkl", REDACTED_PLACEHOLDER),
        ("AIzaSyA1234567890abcdefghij", REDACTED_PLACEHOLDER),
        ("redis://:p@ss/w@host:6379/0", f"redis://{REDACTED_PLACEHOLDER}@host:6379/0"),
        ("vllm --hf-token zzzzzz --port 1", f"vllm --hf-token {REDACTED_PLACEHOLDER} --port 1"),
        ("https://a.b/c?sv=1&sig=ab%2Fc&x=1", f"https://a.b/c?sv=1&sig={REDACTED_PLACEHOLDER}&x=1"),
        ("Cookie: session=zzz; a=b", f"Cookie: {REDACTED_PLACEHOLDER}"),
        ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.abc", REDACTED_PLACEHOLDER),
        ("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----", REDACTED_PLACEHOLDER),
        (
            "engine ended with exit code 1, 3 times: tell me",
            f"engine ended with exit code 1, 3 times: {REDACTED_PLACEHOLDER}",
        ),
    ],
)
def test_secret_like_text_is_redacted(text: str, shown: str) -> None:
    assert SCRUB.scrub_text(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "chat/x: MissingSecret: pod a waits",
        "prompt_tokens: 1189 max_tokens=5 token_total 3",
        'secret "hf-token" not found',
        "the Secret a/b has no pepper",
        "FAIRLEAD_KEY_PEPPER is unset",
        "no secret has that name",
        "hf_token=None, api_key=null",
        "eos_token_id: 151645, seconds_per_token=0.02",
        "hf://meta/llama@main and oci://registry/model@sha256:0f",
        "docker-pullable://ghcr.io/vllm/vllm@sha256:0f",
        "vllm --max-num-batched-tokens 8192 --token-budget 5",
        "see https://a.b/c, or write to d@e",
        'fairlead_gateway_prompt_tokens_total{model="a"} 12',
    ],
)
def test_useful_text_is_kept(text: str) -> None:
    assert SCRUB.scrub_text(text) == text


@pytest.mark.parametrize("unit", ["1", "a", "-a", "--key", "hf", ":", "\\"])
def test_long_text_without_a_secret_is_searched_in_linear_time(unit: str) -> None:
    """Quadratic time would be many minutes, beyond the limit of a test."""
    text = unit * 400_000
    assert SCRUB.scrub_text(text) == text


@pytest.mark.parametrize(
    "line",
    ['{"messages": [{"role": "user"}]}', "{'prompt': 'hi'}", 'got prompt="hi"', 'x "content": "hi"', "prompt: 'Why"],
)
def test_log_lines_with_prompts_are_removed(line: str) -> None:
    assert SCRUB.scrub_log(f"before\n{line}\nafter") == f"before\n{PROMPT_LINE_PLACEHOLDER}\nafter"


def pod(**container: Any) -> dict[str, Any]:
    return {"kind": "Pod", "metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", **container}]}}


def container(shown: dict[str, Any]) -> dict[str, Any]:
    redacted: dict[str, Any] = shown["spec"]["containers"][0]
    return redacted


def test_variables_keep_references_and_harmless_values() -> None:
    env = [
        {"name": "SYSTEM_PROMPT", "value": "You are a canary"},
        {"name": "FAIRLEAD_LEASE", "value": "15s"},
        {"name": "FAIRLEAD_REDIS_URL", "value": "redis://h"},
        {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hf", "key": "token"}}},
    ]
    shown = container(redact_manifest(pod(env=env), SCRUB))["env"]
    assert [variable.get("value") for variable in shown] == [REDACTED_PLACEHOLDER, "15s", REDACTED_PLACEHOLDER, None]
    assert shown[3]["valueFrom"] == {"secretKeyRef": {"name": "hf", "key": "token"}}


def test_arguments_keep_switches_and_short_values() -> None:
    args = [
        "--max-model-len=32768",
        "--api-key=abc",
        "--api-key",
        "abc",
        "--template",
        "You are a",
        "--port",
        "80",
        "--hf-token=x",
    ]
    shown = container(redact_manifest(pod(args=args, command=["sh", "-c", "curl secret"]), SCRUB))
    assert shown["args"] == [
        "--max-model-len=32768",
        f"--api-key={REDACTED_PLACEHOLDER}",
        "--api-key",
        REDACTED_PLACEHOLDER,
        "--template",
        REDACTED_PLACEHOLDER,
        "--port",
        "80",
        f"--hf-token={REDACTED_PLACEHOLDER}",
    ]
    assert shown["command"] == ["sh", "-c", REDACTED_PLACEHOLDER]


def test_foreign_metadata_data_and_engine_messages_are_redacted() -> None:
    manifest = {
        "kind": "Secret",
        "metadata": {
            "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{}", "fairlead.io/port": "8000"},
            "labels": {"app.kubernetes.io/name": "fairlead", "note": "canary"},
            "managedFields": [
                {"manager": "kubectl", "operation": "Apply", "time": "t", "fieldsV1": {"f:spec": {"v:canary": {}}}}
            ],
        },
        "data": {"x": "y"},
        "status": {"state": {"terminated": {"exitCode": 1, "message": "prompt"}}},
    }
    shown = redact_manifest(manifest, SCRUB)
    assert shown["metadata"]["annotations"] == {
        "kubectl.kubernetes.io/last-applied-configuration": REDACTED_PLACEHOLDER,
        "fairlead.io/port": "8000",
    }
    assert shown["metadata"]["labels"] == {"app.kubernetes.io/name": "fairlead", "note": REDACTED_PLACEHOLDER}
    assert shown["metadata"]["managedFields"] == [{"manager": "kubectl", "operation": "Apply", "time": "t"}]
    assert "data" not in shown
    assert shown["status"]["state"]["terminated"] == {"exitCode": 1, "message": REDACTED_PLACEHOLDER}
    revision = {"kind": "ControllerRevision", "data": {"spec": {"engine": {"env": [{"name": "A", "value": "b"}]}}}}
    assert redact_manifest(revision, SCRUB)["data"]["spec"]["engine"]["env"] == [
        {"name": "A", "value": REDACTED_PLACEHOLDER}
    ]


@pytest.mark.parametrize(
    "text",
    [
        "401 for fl_SECRETSECRET",
        "Authorization: ApiKey SECRETSECRET",
        "authorization=Key SECRETSECRET",
        "{'Authorization': 'AWS4-HMAC-SHA256 SECRETSECRET'}",
        "curl -u user:SECRETSECRET https://x",
        "curl --user=user:SECRETSECRET",
        "GET /v1/models?key=SECRETSECRET HTTP/1.1",
        "https://a/b?x=1&code=SECRETSECRET&y=2",
        "x-api-key SECRETSECRET",
        "api-key: SECRETSECRET",
        "Ocp-Apim-Subscription-Key: SECRETSECRET",
        "Server=db;Uid=a;Pwd=SECRETSECRET;",
        "pwd=SECRETSECRET pass=SECRETSECRET passphrase='SECRETSECRET'",
        '{"auths": {"r.io": {"auth": "SECRETSECRET"}}}',
        "https://hooks.slack.com/services/T00/B00/SECRETSECRET",
        "https://discord.com/api/webhooks/1/SECRETSECRET",
        "xai-SECRETSECRET",
        "GOCSPX-SECRETSECRET",
        "dckr_pat_SECRETSECRET",
        "token is aB3SECRETx9Kq2LmZ7tR4wV8",
    ],
)
def test_secret_of_any_known_form_is_replaced(text: str) -> None:
    assert "SECRET" not in SCRUB.scrub_log(text)
    assert REDACTED_PLACEHOLDER in SCRUB.scrub_log(text)


@pytest.mark.parametrize(
    "text",
    [
        "prompt=my words",
        "prompt: tell me",
        'Error tokenizing "tell me"',
        "tokenization 'tell me' failed",
    ],
)
def test_prompt_of_any_known_form_is_left_out(text: str) -> None:
    assert SCRUB.scrub_log(text) == PROMPT_LINE_PLACEHOLDER


@pytest.mark.parametrize(
    "text",
    [
        "model Qwen3-30B-A3B-Instruct-2507-FP8 on NVIDIA-H100-80GB-HBM3-MIG-1g.10gb",
        "image vllm/vllm-openai@sha256:4b825dc642cb6eb9a060e54bf8d69288fbee4904b825dc642cb6eb9a060e54b1",
        "pod llama-70b-main-7c9d8b6f5d-x2x4z, uid 3f0c9d0e-0000-4000-8000-000000000001",
        "/usr/lib/python3.12/site-packages/vllm/v1/engine/AsyncLLMEngine2Core.py",
        "trace 4bf92f3577b34da6a3ce929d0e0e4736, request chatcmpl-req-01JABCDEF",
        "deployment fairlead-system-operator-objects took 12.5s, key=chat/llama-70b, bypass=on",
        "prompt=512 tokens, prompt: 12",
        "compass=1 passed=3 pwd: /srv",
    ],
)
def test_names_and_digests_stay(text: str) -> None:
    assert SCRUB.scrub_log(text) == text
