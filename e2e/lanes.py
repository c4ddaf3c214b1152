"""Which tests stand in which lane of ``make e2e``, and in which order. Pure."""

from collections.abc import Mapping

LOCAL = "local"
STORY = "what installs and removes Fairlead"
LANES: Mapping[str, str] = {
    "kube/test_story.py::test_a_model_is_served": STORY,
    "kube/test_story.py::test_nothing_is_lost": STORY,
    "kube/test_beside.py::test_who_sets": STORY,
    "kube/test_story.py": STORY,
    "kube/test_engines.py::test_a_pool": "models",
    "kube/test_examples.py": "models",
    "kube/test_trouble.py": "models",
    "kube/test_node.py": "engines",
    "kube/test_images.py": "engines",
    "kube/test_engines.py::test_a_group": "engines",
    "kube/test_autoscaling.py": "engines",
    "kube/test_rollouts.py": "engines",
    "kube/test_beside.py": "engines",
}
"""By file, or by the beginning of a test's name, in this order; all else is local. The story has Fairlead for itself first, while the
others do what needs no Fairlead, and again at its end, when they are done with what they need it for."""


def place(nodeid: str) -> int:
    """The row that a test belongs to; behind all of them where it is local."""
    name = nodeid.removeprefix("e2e/")
    return next((number for number, prefix in enumerate(LANES) if name.startswith(prefix)), len(LANES))


def lane(nodeid: str) -> str:
    """The name of a test's lane."""
    return [*LANES.values(), LOCAL][place(nodeid)]
