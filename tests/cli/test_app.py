"""The command line as a whole: file arguments, its name, and errors without a traceback."""

import subprocess
import sys
from pathlib import Path

import pytest

import fairlead_cli.__main__ as entry
import fairlead_cli.app
from fairlead.errors import BadInput
from fairlead_cli.exit_codes import describe_error
from fairlead_cli.local.stack.launch import up
from fairlead_cli.manifest_lint import collect_paths, lint
from fairlead_testing.cli.command_line import run_program

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
