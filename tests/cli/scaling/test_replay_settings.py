"""The settings that the page about autoscaling names."""

import re
from pathlib import Path

from fairlead_autoscaler.history.replay import parse_changes
from fairlead_cli.scaling.replay_command import to_core_change

GUIDE = Path(__file__).parents[3] / "docs" / "concepts" / "autoscaling.md"


def test_what_the_guide_sets_are_settings() -> None:
    told = re.findall(r"--set (\S+=\S+)", GUIDE.read_text())
    assert len(told) >= 3
    parse_changes(map(to_core_change, told))
