"""The command line: as a program, and in this process without the time of its start."""

import io
import os
import subprocess
import sys
import warnings
from contextlib import redirect_stderr, redirect_stdout
from unittest.mock import patch

from fairlead_cli.__main__ import main


def run_program(*words: str, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """Returns the exit code and output of ``fairlead WORDS`` as a process.

    environment: variables in addition to those of this process.
    """
    command = [sys.executable, "-m", "fairlead_cli", *words]
    environ = os.environ | environment
    return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=120, env=environ)


def run_command_line(*words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Returns the exit code and output of ``fairlead WORDS``.

    It is for verbs that start neither a process nor an event loop. Each verb also needs a test that
    starts the program.
    """
    out, error, given = (io.TextIOWrapper(io.BytesIO(text), "utf-8") for text in (b"", b"", stdin.encode()))
    code = 0
    with (
        patch.object(sys, "argv", ["fairlead", *words]),
        patch.dict(os.environ, FAIRLEAD_COMPILED="0"),  # a verb would restart this process from a compiled copy
        patch.object(sys, "stdin", given),
        redirect_stdout(out),
        redirect_stderr(error),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", message="Cyclopts application invoked without tokens")
        try:
            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
    texts = []
    for stream in (out, error):
        stream.seek(0)
        texts.append(stream.read())
    return subprocess.CompletedProcess(["fairlead", *words], code, *texts)
