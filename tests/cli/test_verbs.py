"""The verbs as a whole: groups of the help, nouns, flags with one meaning, and shell completion."""

import json
import shutil
import subprocess
from collections import defaultdict
from pathlib import Path

import pytest
import yaml
from cyclopts import App, CycloptsError
from cyclopts.argument import Argument

from fairlead_cli.app import NOUNS, VERBS, build_app
from fairlead_cli.local.run_directory import RunningStack
from fairlead_cli.output import OutputFormat, format_document, is_document
from fairlead_testing.cli.command_line import run_program

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


def test_a_flag_means_the_same_in_all_verbs() -> None:
    found: defaultdict[str, set[str | None]] = defaultdict(set)
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
                found[flag].add(argument.parameter.help)
    assert {short: flags for short, flags in names.items() if len(flags) > 1} == {}
    assert set(found) >= {"--model", "--namespace", "--install-namespace", "--context", "--kubeconfig"}
    for flag in ("--model", "--namespace", "--install-namespace", "--context", "--kubeconfig"):
        assert len(found[flag]) == 1, flag


def test_output_has_the_same_formats_everywhere() -> None:
    verbs = [words for words in VERBS if any("--output" in argument.names for argument in arguments_of(words))]
    for words in verbs:
        (output,) = [argument for argument in arguments_of(words) if "--output" in argument.names]
        assert output.get_choices() == ("table", "wide", "json", "yaml"), words
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


def completions(script: Path, *words: str) -> list[str]:
    listed = " ".join(f'"{word}"' for word in words)
    ask = f'source {script}; COMP_WORDS=({listed}); COMP_CWORD={len(words) - 1}; _fairlead; echo "${{COMPREPLY[@]}}"'
    return subprocess.run(["bash", "-c", ask], capture_output=True, text=True, check=True).stdout.split()


@pytest.fixture
def script(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    assert build_app()(["completion", "bash"], result_action="return_value") == 0
    path = tmp_path / "completion.bash"
    path.write_text(capsys.readouterr().out)
    return path


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_completes_verbs_flags_and_values(script: Path) -> None:
    assert completions(script, "fairlead", "explain", "") == ["request", "route", "scaling", "shadow"]
    assert completions(script, "fairlead", "inde") == ["index"]
    assert completions(script, "fairlead", "status", "--con") == ["--context"]
    assert completions(script, "fairlead", "status", "-o", "") == ["table", "wide", "json", "yaml"]


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
