"""Our images run in a real cluster as a strict platform team would have it: any user id, read-only
root, no privileges."""

import pytest

from e2e.kube.workloads.helm_release import GATEWAY, HelmRelease

pytestmark = pytest.mark.lane("engines", position=20)


def test_the_gateway_of_the_image_is_the_compiled_one(installed: HelmRelease) -> None:
    code = (
        "from fairlead.runtime.compiled_build import is_compiled; from fairlead_gateway.proxy import forwarder; "
        "print(is_compiled(forwarder.__file__))"
    )
    assert installed.here.python(f"deployment/{GATEWAY}", code).strip() == "True"
