"""``fairlead lint`` as a user meets it: what it prints, word for word, and its exit codes."""

import json
import re
from pathlib import Path

import pytest

from fairlead.errors import BadInput
from fairlead_cli.manifest_lint import MAX_SHOWN, lint
from fairlead_testing.cli.command_line import run_program
from fairlead_testing.pytest_hooks.nightly import shortened

EXAMPLES = Path(__file__).parents[3] / "examples"
GOOD = re.sub(r"# yaml-language-server.*\n|  engine: {type: Sim}\n", "", (EXAMPLES / "01-smallest.yaml").read_text())
POOLS = "[{acceleratorClassName: nvidia-l4}]"
GOLDEN = [
    ("wrong type", GOOD.replace("[{acceleratorClassName: nvidia-l4}]", "nvidia-l4"), """\
FILE:7: spec.pools: must be a list, not the text "nvidia-l4"
    fix: write it for example `pools: [{acceleratorClassName: nvidia-l4}]`
"""),
    ("unknown field", GOOD.replace("pools:", "pool:"), """\
FILE:5: spec.pools: is missing
    fix: add it, for example `pools: [{acceleratorClassName: nvidia-l4}]`
FILE:7: spec.pool: unknown field
    fix: did you mean pools?
"""),
    ("bad duration", GOOD + "  slo:\n    ttft: 5 seconds\n", """\
FILE:9: spec.slo.ttft: '5 seconds' is not a duration
    fix: write it like 800ms, 2s or 1m30s
"""),
    ("missing pools", GOOD.replace("  pools: [{acceleratorClassName: nvidia-l4}]\n", ""), """\
FILE:5: spec.pools: is missing
    fix: add it, for example `pools: [{acceleratorClassName: nvidia-l4}]`
"""),
    ("negative replicas", GOOD.replace("nvidia-l4}", "nvidia-l4, minReplicas: -2}"), """\
FILE:7: spec.pools[0].minReplicas: must be at least 0, not -2
    fix: write a number that is at least 0
"""),
    ("replicas as in a Deployment", GOOD.replace("nvidia-l4}", "nvidia-l4, replicas: 3}"), """\
FILE:7: spec.pools[0].replicas: unknown field
    fix: did you mean minReplicas?
"""),
    ("percent", GOOD + "  slo: {target: 99.5, ttft: 1s}\n", """\
FILE:8: spec.slo.target: must be a percentage, not the number 99.5
    fix: write "99.5%"
"""),
    ("a chart's template", GOOD.replace("nvidia-l4", "{{ .Values.accelerator }}"), """\
FILE:7: (file): the file is a template that has not been rendered
    fix: render it first, for example with `helm template`
"""),
    ("a chart's template with a pipe", GOOD.replace(POOLS, "{{- toYaml .Values.pools | nindent 4 }}"), """\
FILE:7: (file): the file is a template that has not been rendered
    fix: render it first, for example with `helm template`
"""),
    ("a profile for a class", GOOD.replace("nvidia-l4", "h100-llama8b"), """\
FILE:7: spec.pools[0].acceleratorClassName: no AcceleratorClass and no built-in one is called "h100-llama8b", a built-in profile
    fix: name a class; an AcceleratorClass may say `profile: {preset: h100-llama8b}`
"""),
    ("nearly a profile", GOOD.replace("nvidia-l4", "h100-tp4-llama70b"), """\
FILE:7: spec.pools[0].acceleratorClassName: no AcceleratorClass and no built-in one is called "h100-tp4-llama70b"
    fix: add an AcceleratorClass, give its file too, or use amd-mi300x, amd-mi325x, amd-mi355x, \
cpu, google-tpu-v5e, google-tpu-v6e, intel-gaudi2, intel-gaudi3, \
npu-910b4, nvidia-a100, nvidia-b200, nvidia-h100, nvidia-h200, nvidia-l4
"""),
    ("unknown accelerator", GOOD.replace("nvidia-l4", "nvidia-b300"), """\
FILE:7: spec.pools[0].acceleratorClassName: no AcceleratorClass and no built-in one is called "nvidia-b300"
    fix: did you mean nvidia-b200?
"""),
    ("tabs", GOOD.replace("  model:", "\tmodel:"), """\
FILE:6: (file): the indentation contains a tab; YAML is indented with spaces
    fix: replace the tab by spaces
"""),
    ("duplicate key", GOOD + "  model: {uri: 'hf://a/b'}\n", """\
FILE:8: spec.model: the key "model" is already given on line 6
    fix: keep one of the two
"""),
    ("not YAML", "{ this is: [not, yaml\n", """\
FILE:2: (file): not YAML: did not find expected ',' or ']' (while parsing a flow sequence)
    fix: check indentation, colons and quotes on and above this line
"""),
    ("empty file", "", """\
FILE:1: (document): the file is empty
    fix: begin with `apiVersion: serving.fairlead.io/v1alpha1`
"""),
    ("a fleet file", "models:\n  - name: tiny\n    instances: [{url: 'http://127.0.0.1'}, {url: ftp}]\n", """\
FILE:3: models[0].instances[1].url: not an engine's URL: only http:// and https:// are supported
    fix: write it like http://127.0.0.1:8000, http://[::1]:8000 or https://engine.example:8443
"""),
    ("several documents", GOOD + "---\n" + GOOD, """\
FILE:12: metadata.name: the ModelDeployment default/qwen3-8b is already given in FILE:4
    fix: remove one or rename it
"""),
]  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), [item[1:] for item in GOLDEN], ids=[item[0] for item in GOLDEN])
def test_mistakes_have_the_expected_text(
    text: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("FILE").write_text(text)
    assert lint(file=["FILE"]) == 1
    captured = capsys.readouterr()
    assert captured.out == expected
    count = expected.count("FILE:") - expected.count("in FILE:")
    assert captured.err == f"\n{count} problem{'s' if count > 1 else ''} in 1 file\n"


def test_valid_file_is_confirmed(capsys: pytest.CaptureFixture[str]) -> None:
    path = str(EXAMPLES / "02-eight-engines.yaml")
    assert lint(file=[path]) == 0
    assert capsys.readouterr().out == f"{path}: ok, 1 ModelDeployment\n"


SCALED = GOOD.replace("nvidia-l4}", "nvidia-l4, minReplicas: 1, maxReplicas: 8}") + "  autoscaling: {mode: Auto}\n"
SCALED_WITH_SLO = SCALED + "  slo: {ttft: 2s}\n"
SPLIT = """\
  pools:
  - {name: ahead, role: Prefill, acceleratorClassName: nvidia-l4, minReplicas: 2, maxReplicas: 8}
  - {name: after, role: Decode, acceleratorClassName: nvidia-l4, minReplicas: 3}
  kvCache: {transfer: NIXL}
"""


@pytest.mark.parametrize(
    ("text", "notes"),
    [
        (SCALED_WITH_SLO, ""),
        (SCALED_WITH_SLO.replace("minReplicas: 1", "minReplicas: 0").replace("Auto", "Auto, zero: {after: 5m}"), ""),
        (
            SCALED,
            "FILE:8: spec.autoscaling.mode: note: there is no latency target, so pools are sized by what an engine's memory and"
            " batch hold, however slow that is\n"
            "    fix: add latency targets, for example `slo: {ttft: 2s, tpot: 100ms}`\n",
        ),
        (
            SCALED_WITH_SLO.replace("  autoscaling: {mode: Auto}\n", ""),
            "FILE:7: spec.pools[0].maxReplicas: note: the pool stays at 1: `autoscaling.mode` is Disabled if it is left out\n"
            "    fix: write `autoscaling: {mode: Auto}`, or `mode: Disabled` if something else scales it\n",
        ),
        (SCALED_WITH_SLO.replace("Auto", "Disabled"), ""),
        (
            SCALED_WITH_SLO.replace("mode: Auto", "stepUp: 1"),
            "FILE:8: spec.autoscaling: note: these settings have no effect: `mode` is Disabled if it is left out\n"
            "    fix: write `mode: Auto`, or `mode: Advise` if only advice is wanted\n",
        ),
        (
            SCALED_WITH_SLO.replace("Auto", "Auto, zero: {after: 5m}"),
            "FILE:8: spec.autoscaling.zero: note: no pool may have fewer than 1, so none goes to zero\n"
            "    fix: write `minReplicas: 0` in a pool, or remove it\n",
        ),
        (
            SCALED_WITH_SLO.replace("Auto", "Auto, sleep: {min: 8, max: 8}"),
            "FILE:8: spec.autoscaling.sleep.min: note: a pool has at most 8 instances, active ones included, so fewer sleep while"
            " one is active\n    fix: lower it, or raise the pools' maxReplicas\n",
        ),
        *(
            (
                SCALED_WITH_SLO.replace(
                    "Auto", f'Auto, schedules: [{{name: day, begin: "08:00", end: "20:00", {bounds}}}]'
                ),
                notes,
            )
            for bounds, notes in (
                ("minReplicas: 8", ""),
                ("minReplicas: 9, maxReplicas: 9", ""),
                (
                    "minReplicas: 9",
                    "FILE:8: spec.autoscaling.schedules[0].minReplicas: note: the pool main has a maxReplicas of 8, which this"
                    " raises in these hours\n"
                    "    fix: lower it, or write `maxReplicas: 9` into the schedule if that is meant\n",
                ),
            )
        ),
        (
            SCALED_WITH_SLO.replace("ttft: 2s", "ttft: 50ms"),
            "FILE:9: spec.slo.ttft: note: a step of an engine on nvidia-l4 takes 66ms by its profile: no number of"
            " instances meets this target\n    fix: relax it, or take another accelerator\n",
        ),
        (SCALED.replace("Auto", "Advise") + "  replicas: 2\n", ""),
        (SCALED_WITH_SLO.replace("Auto", "Auto, sleep: {max: 2}"), ""),
        (
            SCALED.replace("Auto", "Advise, sleep: {max: 2}"),
            "FILE:8: spec.autoscaling.sleep: note: no instance is put to sleep while `autoscaling.mode` is not Auto; engines"
            " only start with sleep mode\n    fix: write `mode: Auto`, or leave it if that comes later\n",
        ),
        (SCALED + "  slo: {tpot: 70ms}\n", ""),
        (
            SCALED + "  slo: {tpot: 60ms}\n",
            "FILE:9: spec.slo.tpot: note: a step of an engine on nvidia-l4 takes 66ms by its profile: no number of"
            " instances meets this target\n    fix: relax it, or take another accelerator\n",
        ),
        (
            SCALED + "  replicas: 12\n",
            "FILE:9: spec.replicas: note: it fixes the number at 8, so `autoscaling.mode: Auto` changes nothing\n"
            "    fix: remove it, or write `mode: Advise` if only advice is wanted\n",
        ),
        (
            SCALED_WITH_SLO.replace(
                "  pools: [{acceleratorClassName: nvidia-l4, minReplicas: 1, maxReplicas: 8}]\n", SPLIT
            ).replace("Auto", "Auto, maxReplicas: 4"),
            "FILE:9: spec.pools[1].maxReplicas: note: it has no maxReplicas, so `autoscaling.mode: Auto` leaves this pool at 3\n"
            "    fix: give it a maxReplicas above its minReplicas, for example `maxReplicas: 8`, or leave it if that is meant\n"
            "FILE:11: spec.autoscaling.maxReplicas: note: the pools' minReplicas add up to 5, and the autoscaler never"
            " goes below that\n"
            "    fix: raise it, or lower the pools' minReplicas\n",
        ),
    ],
)
def test_ignored_replica_bounds_are_notes_not_problems(
    text: str, notes: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("FILE").write_text(text)
    assert lint(file=["FILE"]) == 0
    assert capsys.readouterr().out == notes + "FILE: ok, 1 ModelDeployment\n"


def test_multiple_files_are_checked_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    deployment_file, two, three = tmp_path / "a.yaml", tmp_path / "b.yaml", tmp_path / "c.yaml"
    deployment_file.write_text(GOOD.replace("nvidia-l4", "mine"))
    two.write_text(
        "apiVersion: serving.fairlead.io/v1alpha1\nkind: AcceleratorClass\nmetadata: {name: mine}\n"
        "spec: {resource: nvidia.com/gpu, profile: {preset: 910b4}}\n"
    )
    three.write_text("models: [{name: a, instances: [{url: 'http://e:1'}]}]\n")
    assert lint(file=[str(deployment_file)]) == 1
    capsys.readouterr()
    assert lint(file=[str(deployment_file), str(two), str(three)]) == 0
    output = capsys.readouterr().out
    assert output == f"{three}: ok, a fleet of 1 model on 1 instance\n2 files: ok, 1 ModelDeployment\n"


def test_large_file_is_checked_and_shows_the_first_problems(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "big.yaml"
    path.write_text(
        GOOD
        + "".join(
            f"  pool{number:05}: [{{acceleratorClassName: nvidia-l4}}]\n" for number in range(shortened(30_000, 4_000))
        )
    )
    assert path.stat().st_size > shortened(2**20, 2**17)
    assert lint(file=[str(path)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 * MAX_SHOWN + 1
    assert lines[0] == f"{path}:8: spec.pool00000: unknown field"
    assert lines[-1] == "… and 951 more: -o wide"


def test_one_mib_of_anything_gets_a_result(tmp_path: Path) -> None:
    path = tmp_path / "big.yaml"
    for content in (b"a" * 2**20, b"- " * 2**19, b"[" * 2**20, b"\xff" * 2**20, b"a: &a [*a]\n" * 2**16, b"#" * 2**20):
        path.write_bytes(content)
        assert lint(file=[str(path)]) == 1


def test_missing_file_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no such file"):
        lint(file=[str(tmp_path / "missing.yaml")])


def test_command_has_exit_codes_and_reads_standard_input(tmp_path: Path) -> None:
    def run(*arguments: str, stdin: str = "") -> tuple[int, str]:
        done = run_program("lint", *arguments, stdin=stdin)
        return done.returncode, done.stdout

    assert run("-f", "-", stdin=GOOD) == (0, "-: ok, 1 ModelDeployment\n")
    assert run("-f", "-", "-f", str(EXAMPLES / "03-two-models.yaml"), stdin="x")[0] == 1
    assert run()[0] == 2
    assert run("-f", str(tmp_path / "missing.yaml"))[0] == 2


def test_a_folder_may_hold_objects_of_other_kinds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.yaml").write_text(
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: chat}\n"
        "---\napiVersion: batch/v1\nkind: Job\nmetadata: {name: copy}\n"
        "---\napiVersion: v1\nkind: Namespace\nmetadata: {name: other}\n"
    )
    (tmp_path / "b.yaml").write_text(GOOD)
    assert lint(str(tmp_path)) == 0
    assert capsys.readouterr().out == (
        f"{tmp_path}/a.yaml:1: (document): note: not checked: Namespace, Job\n"
        "    fix: leave it; `kubectl apply --dry-run=server` checks objects of other API groups\n"
        "2 files: ok, 1 ModelDeployment\n"
    )


VALUES = "# sizes\nreplicaCount: 1\nimage: {tag: v1}\n"
TEMPLATE = "{{- if .Values.chat }}\n" + GOOD + "{{- end }}\n"


def test_files_without_an_object_are_skipped_in_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, text in {
        "Chart.yaml": "apiVersion: v2\nname: chat\nversion: 0.1.0\n",
        "empty.yaml": "# nothing yet\n",
        "model.yaml": GOOD,
        "patch.yaml": "- {op: remove, path: /spec/slo}\n",
        "template.yaml": TEMPLATE,
        "values.yaml": VALUES,
    }.items():
        (tmp_path / name).write_text(text)
    assert lint(str(tmp_path)) == 0
    fix = "fix: leave it, or move it: `kubectl apply -f FOLDER` refuses it"
    no_object = f"note: skipped: the file holds no Kubernetes object\n    {fix}\n"
    assert capsys.readouterr().out == (
        f"{tmp_path}/Chart.yaml:1: (file): {no_object}"
        f"{tmp_path}/empty.yaml:1: (file): note: skipped: the file is empty\n    fix: leave it, or remove it\n"
        f"{tmp_path}/patch.yaml:1: (file): {no_object}"
        f"{tmp_path}/template.yaml:1: (file): note: skipped: the file is a template that has not been rendered\n"
        "    fix: render it first, for example with `helm template`\n"
        f"{tmp_path}/values.yaml:2: (file): {no_object}"
        f"{tmp_path}/model.yaml: ok, 1 ModelDeployment\n"
    )


@pytest.mark.parametrize("text", [VALUES, TEMPLATE, "# nothing yet\n"])
def test_file_without_an_object_is_an_error_if_named_or_alone(text: str, tmp_path: Path) -> None:
    (tmp_path / "other.yaml").write_text(text)
    assert lint(str(tmp_path)) == 1
    (tmp_path / "model.yaml").write_text(GOOD)
    assert lint(str(tmp_path)) == 0
    assert lint(str(tmp_path / "model.yaml"), str(tmp_path / "other.yaml")) == 1


@pytest.mark.parametrize(
    "text",
    [
        GOOD.replace("kind: ModelDeployment\n", ""),
        GOOD.replace("apiVersion: serving.fairlead.io/v1alpha1\n", ""),
        GOOD.partition("metadata")[1] + GOOD.partition("metadata")[2],
        "kind: ModelDeployment\nmeta: {}\n",
        "kind: [not, yaml\n",
        GOOD.replace("  model:", "\tmodel:"),
    ],
)
def test_broken_manifest_of_a_folder_is_not_skipped(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(GOOD)
    (tmp_path / "b.yaml").write_text(text)
    assert lint(str(tmp_path)) == 1


@pytest.mark.parametrize(
    "head",
    [
        "apiVersion: v1\nkind: ModelDeployment",
        "apiVersion: serving.farlead.io/v1alpha1\nkind: ModelDeploymnet",
        "apiVersion: serving.fairlead.io/v1alpha1\nkind: Deployment",
        "kind: Job",
    ],
)
def test_a_misspelled_group_or_kind_is_not_another_system(head: str, tmp_path: Path) -> None:
    path = tmp_path / "model.yaml"
    path.write_text(GOOD.partition("metadata")[0] and f"{head}\nmetadata{GOOD.partition('metadata')[2]}")
    assert lint(str(path)) == 1


def test_a_limit_of_a_revoked_key_is_a_note(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tenant = "apiVersion: serving.fairlead.io/v1alpha1\nkind: ModelTenant\nmetadata: {name: acme}\n"
    path = tmp_path / "tenant.yaml"
    path.write_text(
        f"{GOOD}---\n{tenant}spec:\n  subjects: [{{issuer: 'https://a.example', value: b}}]\n"
        "  limits: [{per: Minute, requests: 6, key: ci}]\n"
    )
    assert lint(str(path)) == 0
    assert "spec.limits[0].key: note: the tenant has no key of this name" in capsys.readouterr().out


def test_json_and_sarif_have_every_problem_and_note_with_its_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad, noted = tmp_path / "bad file.yaml", tmp_path / "noted.yaml"
    bad.write_text(GOOD.replace(POOLS, "[{acceleratorClassName: nvidia-l4, minReplicas: -2}]"))
    noted.write_text(GOOD.replace("nvidia-l4}", "nvidia-l4, maxReplicas: 3}").replace("qwen3-8b", "other"))
    assert lint(str(bad), str(noted), output="json") == 1
    report = json.loads(capsys.readouterr().out)
    (problem,) = report["problems"]
    assert (problem["file"], problem["line"], problem["field"]) == (str(bad), 7, "spec.pools[0].minReplicas")
    assert problem["fix"] == "write a number that is at least 0"
    assert lint(str(noted), output="json") == 0
    (note,) = json.loads(capsys.readouterr().out)["notes"]
    assert not note["message"].startswith("note")
    assert lint(str(bad), output="sarif") == 1
    log = json.loads(capsys.readouterr().out)
    (run,) = log["runs"]
    (result,) = run["results"]
    assert (log["version"], result["level"], result["ruleId"]) == ("2.1.0", "error", "spec.pools.minReplicas")
    place = result["locations"][0]["physicalLocation"]
    assert place["artifactLocation"]["uri"].endswith("/bad%20file.yaml")
    assert place["region"] == {"startLine": 7}
    assert run["tool"]["driver"]["rules"] == [{"id": "spec.pools.minReplicas"}]


def test_more_problems_than_text_shows_are_all_in_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = "".join(f"  unknown{number}: 1\n" for number in range(MAX_SHOWN + 5))
    file = tmp_path / "bad.yaml"
    file.write_text(GOOD + lines)
    assert lint(str(file), output="json") == 1
    assert len(json.loads(capsys.readouterr().out)["problems"]) == MAX_SHOWN + 5
    assert lint(str(file), output="wide") == 1
    assert capsys.readouterr().out.count("unknown field") == MAX_SHOWN + 5
