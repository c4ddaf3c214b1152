"""Everything that a build or a workflow takes from outside is named by a digest."""

import re
from pathlib import Path
from typing import Any

import pytest

from fairlead_testing.yaml_documents import load_document

ROOT = Path(__file__).parents[2]
COMPONENTS = ("autoscaler", "cli", "gateway", "kvstore", "operator", "sim")
DOCKERFILES = [ROOT / component / "Dockerfile" for component in COMPONENTS]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.y*ml"))
CALLERS_OF_ACTIONS = [*WORKFLOWS, ROOT / "action.yml"]
RELEASE = ROOT / ".github" / "workflows" / "release.yaml"
LOCKS = sorted((ROOT / "requirements").rglob("*.txt"))
SPAN = re.compile(r"`([^`\n]+)`")
DIGEST = r"@sha256:[0-9a-f]{64}"


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def steps(workflow: Path) -> list[dict[str, Any]]:
    jobs = load_document(workflow.read_text())["jobs"]
    return [step for job in jobs.values() for step in job["steps"]]


def bases(dockerfile: Path) -> list[str]:
    """Returns what the stages of a Dockerfile are built from."""
    return re.findall(r"^FROM (\S+)", dockerfile.read_text(), re.MULTILINE)


def pip_lines(text: str) -> list[str]:
    """Returns the commands that install packages from a registry, with continued lines joined."""
    joined = text.replace("\\\n", " ").replace("$(LOCKED_PIP)", locked_pip())
    return [part for part in re.split(r"&&|\n", joined) if re.search(r"\bpip install\b", part) and " -r " in part]


def locked_pip() -> str:
    return re.findall(r"^LOCKED_PIP = (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[0]


def test_every_dockerfile_is_known() -> None:
    assert sorted(ROOT.glob("*/Dockerfile")) == DOCKERFILES


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=named)
def test_each_stage_is_built_from_a_digest(dockerfile: Path) -> None:
    assert bases(dockerfile)
    for base in bases(dockerfile):
        assert re.fullmatch(rf"python:3\.11\.\d+-(slim-)?\w+{DIGEST}", base), base


def test_all_images_have_the_same_python_and_debian() -> None:
    tags = {base.partition("@")[0].replace("slim-", "") for path in DOCKERFILES for base in bases(path)}
    assert len(tags) == 1, tags
    by_tag = {base.partition("@")[0]: base for path in DOCKERFILES for base in bases(path)}
    assert set(by_tag.values()) == {base for path in DOCKERFILES for base in bases(path)}


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=named)
def test_a_dockerfile_installs_nothing_without_a_digest(dockerfile: Path) -> None:
    text = dockerfile.read_text()
    for word in ("apt-get", "apk ", "curl", "wget", "ADD "):
        assert word not in text
    for line in re.findall(r"pip install [^\n&]*", text):
        assert "--require-hashes" in line, line


@pytest.mark.parametrize("path", [*DOCKERFILES, ROOT / "Makefile", ROOT / "scripts" / "env.sh"], ids=named)
def test_registry_packages_are_wheels_with_hashes(path: Path) -> None:
    lines = pip_lines(path.read_text())
    assert lines
    for line in lines:
        assert "--require-hashes" in line, line
        assert "--no-deps" in line, line
        assert "--only-binary :all:" in line, line


@pytest.mark.parametrize("lock", LOCKS, ids=named)
def test_each_package_of_a_lock_has_a_hash_and_no_address(lock: Path) -> None:
    text = lock.read_text()
    blocks = re.split(r"^(?=[a-z0-9])", text, flags=re.MULTILINE)[1:]
    assert blocks
    for block in blocks:
        assert re.match(r"[a-z0-9-]+(\[[^]]*\])?==\S", block), block
        assert "--hash=sha256:" in block, block
    assert "://" not in text


@pytest.mark.parametrize("workflow", CALLERS_OF_ACTIONS, ids=named)
def test_actions_are_pinned_by_commit_and_say_their_release(workflow: Path) -> None:
    lines = re.findall(r"^[\s-]*uses: (.*)$", workflow.read_text(), re.MULTILINE)
    assert lines
    for line in lines:
        assert re.fullmatch(r"[\w.-]+/[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", line), line


def test_an_action_has_one_commit_everywhere() -> None:
    commits: dict[str, set[str]] = {}
    for path in CALLERS_OF_ACTIONS:
        for owner, name, commit in re.findall(r"uses: ([\w.-]+)/([\w.-]+)[^@\n]*@(\S+)", path.read_text()):
            commits.setdefault(f"{owner}/{name}", set()).add(commit)
    assert len(commits) >= 4
    assert {action: pinned for action, pinned in commits.items() if len(pinned) > 1} == {}


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=named)
def test_a_workflow_may_only_read(workflow: Path) -> None:
    document = load_document(workflow.read_text())
    assert document["permissions"] == {"contents": "read"}
    for job in document["jobs"].values():
        uploads = any("/codeql-action/analyze@" in step.get("uses", "") for step in job["steps"])
        wanted = {"contents": "read", "security-events": "write"} if uploads else {"contents": "read"}
        assert job.get("permissions", document["permissions"]) == wanted
        assert "secrets" not in job
        assert 0 < job["timeout-minutes"] <= 60
    if workflow != RELEASE:
        assert "secrets." not in workflow.read_text()


def test_only_a_tag_or_a_maintainer_starts_a_release() -> None:
    document = load_document(RELEASE.read_text())
    assert document[True] == {"push": {"tags": ["v*"]}, "workflow_dispatch": None}
    (job,) = document["jobs"].values()
    assert job["environment"] == "release"


def test_the_secrets_of_a_release_reach_one_step_each() -> None:
    text = RELEASE.read_text()
    given = [set(re.findall(r"secrets\.(\w+)", str(step.get("env", "")))) for step in steps(RELEASE)]
    assert [names for names in given if names] == [{"SIGNING_KEY"}, {"REGISTRY_USER", "REGISTRY_PASSWORD"}]
    assert len(re.findall(r"secrets\.", text)) == 3
    assert [step["run"] for step in steps(RELEASE) if "run" in step][-1] == "make publish"


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=named)
def test_a_checkout_leaves_no_credentials_behind(workflow: Path) -> None:
    checkouts = [step for step in steps(workflow) if step.get("uses", "").startswith("actions/checkout@")]
    assert checkouts
    for step in checkouts:
        assert step["with"]["persist-credentials"] is False


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=named)
def test_no_text_of_an_event_becomes_a_command(workflow: Path) -> None:
    triggers = load_document(workflow.read_text())[True]  # YAML 1.1 reads `on` as true
    assert {"pull_request_target", "workflow_run", "issue_comment"}.isdisjoint(triggers)
    for step in steps(workflow):
        assert "${{" not in step.get("run", "")


def test_locks_are_audited_every_day() -> None:
    document = load_document((ROOT / ".github" / "workflows" / "audit.yaml").read_text())
    assert re.fullmatch(r"\d+ \d+ \* \* \*", document[True]["schedule"][0]["cron"])
    assert any(step.get("run") == "make audit" for step in document["jobs"]["python"]["steps"])
    makefile = (ROOT / "Makefile").read_text()
    audited = set(re.findall(r"^LOCKS := (.*)$", makefile, re.MULTILINE)[0].split())
    images = ROOT / "requirements" / "images"
    assert audited == {named(lock) for lock in LOCKS if lock.parent != images}
    assert "for service in pypi osv" in makefile


def test_updates_of_actions_images_and_modules_are_proposed() -> None:
    updates = load_document((ROOT / ".github" / "dependabot.yml").read_text())["updates"]
    folders = {
        entry["package-ecosystem"]: {folder.strip("/") for folder in entry.get("directories", [entry.get("directory")])}
        for entry in updates
    }
    assert folders["github-actions"] == {""}
    assert folders["docker"] == set(COMPONENTS)
    modules = (ROOT / "e2e" / "cluster" / "artifacts").glob("*/go.mod")
    assert folders["gomod"] == {named(path.parent) for path in modules}


@pytest.mark.parametrize("page", ["security-promises.md", "threat-model.md"])
def test_every_test_that_a_security_page_names_exists(page: str) -> None:
    rows = [line for line in (ROOT / "docs" / "reference" / page).read_text().splitlines() if line.startswith("| ")]
    paths = [span for row in rows for span in SPAN.findall(row.rstrip("| ").rpartition(" | ")[2])]
    paths = [path for path in paths if "/" in path]
    assert len(paths) >= 20
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_every_test_that_the_attacks_page_names_exists() -> None:
    page = (ROOT / "docs" / "reference" / "attacks.md").read_text()
    rows = [line for line in page.splitlines() if re.search(r" \| (high|medium|low) \| `", line)]
    assert len(rows) >= 60
    missing = []
    for row in rows:
        tests = SPAN.findall(row.rstrip("| ").rpartition(" | ")[2])
        assert tests, row
        for test in tests:
            path, _, function = test.partition("::")
            if not (ROOT / path).exists() or f"def {function}(" not in (ROOT / path).read_text():
                missing.append(test)
    assert missing == []


def test_every_promise_of_the_security_page_names_a_test_file() -> None:
    page = (ROOT / "docs" / "reference" / "security-promises.md").read_text()
    table = page.partition("|---|---|---|\n")[2].partition("\n\n")[0]
    rows = [line.strip("| ").rpartition(" | ")[2] for line in table.splitlines()]
    assert len(rows) >= 25
    assert [row for row in rows if not re.search(r"`tests/[\w./-]+/test_\w+\.py`", row)] == []
