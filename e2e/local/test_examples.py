"""Every file of examples/ does what its first line says: it comes up as it stands and answers."""

import sys
from pathlib import Path

import openai
import pytest

from fairlead_testing.local_stack import LocalStack

ROOT = Path(__file__).parents[2] / "examples"
INTENTS = [path for path in sorted(ROOT.glob("*/simulated*.yaml")) if path.parent.name != "external-engines"]
"""Simulated examples. Those that need other engines run on a cluster alone
(``kube/test_examples.py``)."""
EXAMPLES = [*sorted(ROOT.glob("*.yaml")), *INTENTS]


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: str(path.relative_to(ROOT)))
def test_an_example_serves_each_of_its_models(path: Path, tmp_path: Path) -> None:
    with LocalStack(tmp_path, "--speed", "10", manifest=path.read_text()).wait_ready() as up:
        with openai.OpenAI(base_url=f"{up.url}/v1", api_key="none", max_retries=0) as client:
            names = [model.id for model in client.models.list()]
            assert names
            for name in names:
                answer = client.chat.completions.create(
                    model=name, messages=[{"role": "user", "content": "Why is the sky blue?"}], max_tokens=4
                )
                assert answer.choices[0].message.content
        assert up.command("local", "status").returncode == 0
