"""The verbs as a whole: groups of the help, nouns, flags with one meaning, and shell completion."""

import io
import json
import shlex
import subprocess
import sys
import tarfile
from collections import defaultdict
from pathlib import Path

import pytest
import yaml
from cyclopts import App, CycloptsError
from cyclopts.argument import Argument

import fairlead_cli.__main__ as entry
import fairlead_cli.app
from fairlead.api.manifest_schema import manifest_schema
from fairlead.errors import BadInput
from fairlead_cli.app import NOUNS, VERBS, build_app, with_default_verb
from fairlead_cli.examples import EXAMPLES
from fairlead_cli.exit_codes import describe_error
from fairlead_cli.local.run_directory import RunningStack
from fairlead_cli.local.stack.launch import up
from fairlead_cli.manifest_lint import collect_paths, lint
from fairlead_cli.output import OutputFormat, format_document, is_document
from fairlead_cli.watching import show_repeatedly
from fairlead_testing.cli.command_line import run_command_line, run_program

SHARED_FLAGS = ("--model", "--namespace", "--install-namespace", "--context", "--kubeconfig", "--manage", "--out")
LOCAL_VERBS = ("up", "local status", "replay")
"""Verbs that never mean a cluster: their addresses have other defaults."""


def command_of(app: App, words: str) -> App:
    for word in words.split():
        app = app[word]
    return app


def arguments_of(words: str) -> list[Argument]:
    app = build_app()
    collection = command_of(app, words).assemble_argument_collection(default_parameter=app.default_parameter)
    return [argument for argument in collection if argument.show]


def help_of(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    build_app(arguments=words)([*words, "--help"], result_action="return_value")
    return capsys.readouterr().out


def test_help_has_groups_in_the_order_of_the_work(capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of(capsys)
    places = [text.index(f" {group} ") for group in ("Run locally", "Operate", "Tools")]
    assert places == sorted(places)
    for words in VERBS:
        assert words.split()[0] in text


@pytest.mark.parametrize("noun", NOUNS)
def test_noun_lists_its_verbs(noun: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of(capsys, noun)
    verbs = [words.partition(" ")[2] for words in VERBS if words.startswith(f"{noun} ")]
    assert verbs
    assert all(verb in text for verb in verbs)


@pytest.mark.parametrize("words", VERBS)
def test_help_of_a_verb_names_its_exit_codes(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of(capsys, *words.split())
    assert words in text
    if VERBS[words].group == "Operate":
        assert "Exits 0" in text


@pytest.mark.parametrize("words", VERBS)
def test_help_of_a_verb_ends_with_examples_that_can_be_parsed(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of(capsys, *words.split())
    shown = " ".join(text[text.index("Examples:") :].split())
    for example in EXAMPLES[words]:
        assert f"fairlead {example}" in shown
        command = with_default_verb(shlex.split(example))
        assert command[: len(words.split())] == words.split()
        build_app().parse_args(command, exit_on_error=False, print_error=False)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["keys", "create"], "TENANT is missing (see fairlead keys create --help)"),
        (["stauts"], 'unknown command "stauts". Did you mean "status"? (see fairlead --help)'),
        (["status", "--bogus"], "unknown option: --bogus (see fairlead status --help)"),
        (["lint", "-o"], "-o needs a value (see fairlead lint --help)"),
        (["status", "a", "b"], "unexpected words: b (see fairlead status --help)"),
        (["explain", "route"], "--file is missing (see fairlead explain route --help)"),
    ],
)
def test_wrong_usage_is_one_line_that_names_the_help(words: list[str], message: str) -> None:
    done = run_program(*words)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"fairlead: {message}\n")


@pytest.mark.parametrize("words", [["catalog"], ["rollout", "--help"], ["lint", "nowhere.yaml"]])
def test_a_terminal_without_unicode_gets_ascii(words: list[str]) -> None:
    done = run_program(*words, PYTHONIOENCODING="ascii")
    assert done.returncode in (0, 2)
    assert "Traceback" not in done.stderr
    assert (done.stdout + done.stderr).isascii()


def test_a_watched_answer_is_shown_again_until_ctrl_c(capsys: pytest.CaptureFixture[str]) -> None:
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 3:
            raise KeyboardInterrupt

    def show() -> int:
        print("all is well")
        return 0

    with pytest.raises(KeyboardInterrupt):
        show_repeatedly(show, watch=True, output="table", pause=pause)
    assert capsys.readouterr().out == "all is well\n\n" * 3
    assert show_repeatedly(show, watch=False, output="json", pause=pause) == 0
    with pytest.raises(BadInput, match="--watch shows text"):
        show_repeatedly(show, watch=True, output="json", pause=pause)


def test_a_watched_terminal_is_cleared_once_an_answer_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    def pause(seconds: float) -> None:
        raise KeyboardInterrupt

    def show() -> int:
        assert terminal.getvalue() == ""
        print("one", "two", sep="\n")
        return 0

    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    with pytest.raises(KeyboardInterrupt):
        show_repeatedly(show, watch=True, output="table", pause=pause)
    assert terminal.getvalue() == "\x1b[H\x1b[2Jone\ntwo\n"


def test_a_flag_means_the_same_in_all_verbs() -> None:
    texts: defaultdict[str, set[str | None]] = defaultdict(set)
    names: defaultdict[str, set[tuple[str, ...]]] = defaultdict(set)
    for words in VERBS:
        for argument in arguments_of(words):
            flag = next((name for name in argument.names if name.startswith("--")), None)
            if flag is None:
                continue
            for name in argument.names:
                if len(name) == 2:
                    names[name].add((flag,))
            if flag in SHARED_FLAGS and words not in LOCAL_VERBS and VERBS[words].group == "Operate":
                texts[flag].add(argument.parameter.help)
    assert {short: flags for short, flags in names.items() if len(flags) > 1} == {}
    assert set(texts) >= {"--model", "--namespace", "--install-namespace", "--context", "--kubeconfig"}
    for flag in ("--model", "--namespace", "--install-namespace", "--context", "--kubeconfig"):
        assert len(texts[flag]) == 1, flag


def test_output_has_the_same_formats_everywhere() -> None:
    verbs = [words for words in VERBS if any("--output" in argument.names for argument in arguments_of(words))]
    for words in verbs:
        (output,) = [argument for argument in arguments_of(words) if "--output" in argument.names]
        more = ("sarif",) if words == "lint" else ()
        assert output.get_choices() == ("table", "wide", "json", "yaml", *more), words
        assert "-o" in output.names
    operating = {words for words, verb in VERBS.items() if verb.group == "Operate"}
    assert operating - set(verbs) == {"airgap images", "chat", "support-bundle"}


@pytest.mark.parametrize(
    "words",
    [
        ["index", "match", "--model", "tiny", "--tokens", "t.json", "--redis", "redis://127.0.0.1:6379/0"],
        ["index", "match", "--model", "tiny", "--tokens", "-"],
        ["status", "--model", "chat/tiny", "-o", "wide"],
        ["status", "tiny", "-n", "chat"],
        ["explain", "scaling", "-m", "tiny", "--at", "5m"],
        ["rollout", "undo", "tiny", "--to", "3"],
        ["local", "status", "--manage", ":8001"],
    ],
)
def test_spellings_that_stay_are_parsed(words: list[str]) -> None:
    build_app().parse_args(words, exit_on_error=False, print_error=False)


@pytest.mark.parametrize("words", [["explain", "req-1"], ["rollout", "pause", "--to", "3"], ["check", "-n", "x"]])
def test_words_of_other_verbs_are_refused(words: list[str]) -> None:
    with pytest.raises(CycloptsError):
        build_app().parse_args(words, exit_on_error=False, print_error=False)


@pytest.mark.parametrize(("output", "load"), [("json", json.loads), ("yaml", yaml.safe_load)])
def test_documents_hold_the_same_values(output: OutputFormat, load: object) -> None:
    value = {"model": "chat/tiny", "ready": None, "share": 0.5, "words": ["é", "no"]}
    assert is_document(output)
    assert callable(load)
    assert load(format_document(value, output)) == value
    assert load(format_document(json.dumps(value).encode(), output)) == value


def test_status_without_a_cluster_names_the_local_stack(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from fairlead_cli.cluster.status import command

    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    monkeypatch.setattr(command, "running_stacks", lambda: [RunningStack(1, "u", "m", 0.0)])
    assert build_app()(["status"], result_action="return_value") == 3
    assert "fairlead local status" in capsys.readouterr().err


# --- completion ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_have_a_script(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert build_app()(["completion", shell], result_action="return_value") == 0
    assert "support-bundle" in capsys.readouterr().out


@pytest.mark.parametrize("verb", ["lint", "convert"])
def test_text_of_a_file_controls_no_terminal(verb: str, tmp_path: Path) -> None:
    file = tmp_path / "hostile.yaml"
    name, key = '"x\\e]0;title\\a"', '"\\e[2J"'
    file.write_text(
        "apiVersion: serving.fairlead.io/v1alpha1\nkind: ModelDeployment\n"
        f"metadata: {{name: {name}}}\nspec: {{{key}: 1}}\n"
    )
    result = run_program(verb, str(file))
    assert result.returncode != 0
    shown = result.stdout + result.stderr
    assert "metadata.name" in shown
    assert "\x1b" not in shown
    assert "\a" not in shown


DIGESTS = {"gateway": f"sha256:{'a' * 64}", "operator": f"sha256:{'b' * 64}"}


def chart(folder: Path, release: object) -> str:
    """Writes a packaged chart with this `files/release.yaml`."""
    path, data = folder / "fairlead-1.2.3.tgz", yaml.safe_dump(release).encode()
    with tarfile.open(path, "w:gz") as tar:
        entry = tarfile.TarInfo("fairlead/files/release.yaml")
        entry.size = len(data)
        tar.addfile(entry, io.BytesIO(data))
    return str(path)


@pytest.mark.parametrize(
    ("options", "registry"), [((), "example.org/team"), (("--registry", "oci://other.example/x/"), "other.example/x")]
)
def test_each_image_has_a_line(tmp_path: Path, options: tuple[str, ...], registry: str) -> None:
    path = chart(tmp_path, {"registry": "example.org/team", "images": DIGESTS})
    lines = [f"{name} {digest} {registry}/{name}@{digest}" for name, digest in DIGESTS.items()]
    assert run_program("airgap", "images", path, *options).stdout.splitlines() == lines


@pytest.mark.parametrize("release", [{}, [], "text", {"images": ["gateway"]}, {"images": DIGESTS}])
def test_a_chart_that_names_no_images_or_no_registry_is_refused(tmp_path: Path, release: object) -> None:
    done = run_command_line("airgap", "images", chart(tmp_path, release))
    assert done.returncode == 2
    assert "fairlead-1.2.3.tgz" in done.stderr


def test_another_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no chart")
    done = run_command_line("airgap", "images", str(tmp_path / "file"))
    assert done.returncode == 2
    assert "helm pull" in done.stderr


EXAMPLE = Path(__file__).parents[2] / "examples" / "01-smallest.yaml"


@pytest.mark.parametrize("words", [[str(EXAMPLE)], ["-f", str(EXAMPLE)], ["--file", str(EXAMPLE)], ["-"], ["-f", "-"]])
def test_files_are_plain_words_or_f_options_and_hyphen_is_stdin(words: list[str]) -> None:
    done = run_program("lint", *words, stdin=EXAMPLE.read_text())
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("ok, 1 ModelDeployment\n")


def test_up_reads_its_manifest_from_stdin() -> None:
    done = run_program("up", "-", "--listen", "127.0.0.1:0", "--manage", "127.0.0.1:0", stdin="kind: ModelDeploymint\n")
    assert done.returncode == 2
    assert "-:1: kind: must be one of" in done.stderr


def test_missing_file_argument_is_wrong_usage() -> None:
    done = run_program("lint")
    assert done.returncode == 2
    assert "no file was given" in done.stderr


def test_lint_prints_the_schema_for_editors_and_then_takes_no_files() -> None:
    printed = run_program("lint", "--schema")
    assert (printed.returncode, printed.stderr) == (0, "")
    assert json.loads(printed.stdout) == manifest_schema()
    refused = run_program("lint", "--schema", str(EXAMPLE))
    assert refused.returncode == 2
    assert "--schema takes no files" in refused.stderr


@pytest.mark.parametrize(("word", "hint"), [("--speeed", "did you mean --speed"), ("-z", "fairlead up --help")])
def test_unknown_option_is_not_taken_for_a_file(word: str, hint: str) -> None:
    with pytest.raises(BadInput, match=f"unknown option: {word}") as refused:
        collect_paths(up, ("a.yaml", word), None)
    assert hint in str(refused.value)


def test_f_options_follow_plain_file_arguments() -> None:
    assert collect_paths(lint, ("a", "-"), ["b"]) == ("a", "-", "b")


def test_kubectl_plugin_shows_kubectl_in_its_usage() -> None:
    (usage, *_) = fairlead_cli.app.build_app("kubectl-fairlead").name
    assert usage == "kubectl fairlead"


def test_error_names_the_option_that_its_message_lacks() -> None:
    done = run_program("catalog", "list", "--on", "own")
    assert done.returncode == 2
    assert done.stderr.startswith("fairlead: --on: the memory of own is not known (use one of nvidia-l4, ")
    assert "--memory" not in done.stderr, "the verb has no such option"


@pytest.mark.parametrize(
    ("field", "message", "text"),
    [
        ("spec.targets[0].model", "no such model", "spec.targets[0].model: no such model"),
        ("--speed", "--speed is too high", "--speed is too high"),
        ("MODEL", "no such model", "no such model"),
        (None, "no such model", "no such model"),
    ],
)
def test_field_of_an_error_is_shown_once(field: str | None, message: str, text: str) -> None:
    assert describe_error(BadInput(message, field=field)) == text


def test_unusable_path_is_a_one_line_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = run_program("up", "--listen", ":0", "--manage", ":0", "--logs", str(tmp_path / "file" / "logs"))
    assert done.returncode == 2
    assert done.stderr == f"fairlead: {tmp_path}/file/logs cannot be used: Not a directory\n"


def test_ctrl_c_exits_quietly_at_any_time(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(program: str, asked: str | None) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(fairlead_cli.app, "build_app", interrupted)
    with pytest.raises(SystemExit) as ended:
        entry.main()
    assert ended.value.code == 130


def test_imports_happen_after_ctrl_c_is_handled() -> None:
    code = "import sys; before = set(sys.modules); import fairlead_cli.__main__; print(*sys.modules.keys() - before)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == {"fairlead_cli", "fairlead_cli.__main__"}


WITHOUT_MANAGE = {
    "status": "a cluster",
    "check": "a cluster",
    "version": "a cluster",
    "support-bundle": "a cluster",
    "rollout status": "a cluster",
    "rollout pause": "a cluster",
    "rollout resume": "a cluster",
    "rollout undo": "a cluster",
    "rollout promote": "a cluster",
    "explain scaling": "an autoscaler",
    "replay-scaling": "an autoscaler",
    "keys create": "tenants",
    "keys rotate": "tenants",
    "keys revoke": "tenants",
    "airgap images": "nothing",
}
"""The verbs that ask no gateway, and look for no stack on this machine, with what they ask."""


@pytest.mark.parametrize("words", [words for words in VERBS if VERBS[words].group == "Operate"])
def test_each_verb_that_asks_a_gateway_takes_its_address(words: str) -> None:
    names = {name for argument in arguments_of(words) for name in argument.names}
    assert ("--manage" in names) == (words not in WITHOUT_MANAGE)
