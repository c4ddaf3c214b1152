"""`fairlead completion`: each shell takes its script, and completes commands and options by it.

zsh and fish are Debian's, unpacked into the cache; bash is the machine's.
"""

import os
import subprocess
from functools import cache
from pathlib import Path

import pytest

from fairlead_testing.cli.command_line import run_program
from scripts.debian_programs import DebianProgram, debian_program

_BASH = """
source "$1"
COMP_WORDS=("${@:2}"); COMP_CWORD=$(($# - 2))
function_name=$(complete -p fairlead | sed 's/.*-F \\([^ ]*\\).*/\\1/')
"$function_name" fairlead "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""
_ZSHENV = """
module_path=("{root}/usr/lib/x86_64-linux-gnu/zsh/5.9")
fpath=("{functions}" "{root}/usr/share/zsh/functions"/**/*(/))
"""
_ZSHRC = """
PS1='PROMPT-NOW'; LISTMAX=1000; stty columns 100 rows 60
autoload -Uz compinit; compinit -u -D
{sourced}
"""
_ZSH = """
zmodload zsh/zpty
zpty terminal "$ZSH_PROGRAM" -d -i
zpty -r terminal line '*PROMPT-NOW*'
for typed in "$@"; do
  zpty -n -w terminal "$typed"$'\\C-d\\C-u'"print END''-LIST"$'\\n'
  zpty -r terminal line '*END-LIST*PROMPT-NOW*'
  print -r -- "$line NEXT-LINE"
done
"""
"""Control-D lists the completions of each line. What is typed before a prompt may be lost."""
_TYPED = {
    "fairlead ": {"status", "explain", "check"},
    "fairlead explain ": {"request", "route", "scaling"},
    "fairlead status --": {"--output", "--namespace"},
}


@pytest.fixture(scope="module")
def zsh() -> DebianProgram:
    return debian_program("zsh")


@pytest.fixture(scope="module")
def fish() -> DebianProgram:
    return debian_program("fish")


@cache
def completion_script(shell: str) -> str:
    """Returns what the command prints for a shell."""
    done = run_program("completion", shell)
    assert done.returncode == 0, done.stderr
    return done.stdout


def script(shell: str, path: Path) -> Path:
    """Writes the shell's script to ``path``."""
    path.write_text(completion_script(shell))
    return path


def run(command: list[str | Path], home: Path, environment: dict[str, str] | None = None) -> str:
    """Returns what a shell prints. It must print no error."""
    environment = {"HOME": str(home), "PATH": os.environ["PATH"], "TERM": "xterm", "LC_ALL": "C.UTF-8"} | (
        environment or {}
    )
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (["sta"], {"status"}),
        (["explain", ""], {"request", "route", "scaling"}),
        (["status", "--out"], {"--output"}),
        (["completion", ""], {"bash", "zsh", "fish"}),
    ],
    ids=lambda words: " ".join(sorted(words)),  # every process gives the same names, whatever order its sets have
)
def test_fish_completes(fish: DebianProgram, tmp_path: Path, line: list[str], expected: set[str]) -> None:
    file = script("fish", tmp_path / "fairlead.fish")
    words = " ".join(["fairlead", *line])
    output = run([fish.path, "--no-config", "-c", f"source {file}; complete -C '{words}'"], tmp_path, fish.environment)
    assert expected <= {line.partition("\t")[0] for line in output.splitlines()}


def test_fish_and_zsh_parse_their_scripts(zsh: DebianProgram, fish: DebianProgram, tmp_path: Path) -> None:
    assert not run([fish.path, "--no-execute", script("fish", tmp_path / "f")], tmp_path, fish.environment)
    assert not run([zsh.path, "-f", "-n", script("zsh", tmp_path / "z")], tmp_path, zsh.environment)


@pytest.mark.parametrize("is_sourced", [False, True], ids=["in fpath", "sourced"])
def test_zsh_completes_each_line_of_a_session(zsh: DebianProgram, tmp_path: Path, is_sourced: bool) -> None:
    functions = tmp_path / "functions"
    functions.mkdir()
    file = script("zsh", (tmp_path if is_sourced else functions) / "_fairlead")
    (tmp_path / ".zshenv").write_text(_ZSHENV.format(root=zsh.root, functions=functions))
    (tmp_path / ".zshrc").write_text(_ZSHRC.format(sourced=f"source {file}" if is_sourced else ""))
    (tmp_path / "complete.zsh").write_text(_ZSH)
    environment = zsh.environment | {"ZSH_PROGRAM": str(zsh.path), "ZDOTDIR": str(tmp_path)}
    command: list[str | Path] = [zsh.path, "-d", tmp_path / "complete.zsh", *_TYPED]
    lists = run(command, tmp_path, environment).replace("\x1b", " ").split("NEXT-LINE")
    for (line, expected), words in zip(_TYPED.items(), lists, strict=False):
        assert expected <= set(words.split()), line


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (["explain", ""], ["request", "route", "scaling", "shadow"]),
        (["inde"], ["index"]),
        (["status", "--con"], ["--context"]),
        (["status", "-o", ""], ["table", "wide", "json", "yaml"]),
    ],
)
def test_bash_completes(tmp_path: Path, line: list[str], expected: list[str]) -> None:
    file = script("bash", tmp_path / "fairlead.bash")
    (tmp_path / "complete.bash").write_text(_BASH)
    output = run(["bash", "--norc", tmp_path / "complete.bash", file, "fairlead", *line], tmp_path)
    assert output.split() == expected
