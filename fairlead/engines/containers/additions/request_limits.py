"""Switches that bound what requests make an engine do.

- Media: a request names images, audio and videos by URL, and the engine fetches them. Without a
  list of domains vLLM and SGLang fetch any URL, also one inside the cluster.
- Block hashes: engines that share blocks start with a known seed. Their hash must then be one
  without known collisions.
"""

from dataclasses import replace
from typing import Final

from fairlead.api.spec.engine import ANY_DOMAIN, EngineType
from fairlead.engines.containers.base import EngineContainer, InstancePod, env_value

NO_MEDIA_DOMAIN: Final = "media.invalid"
"""A domain that never resolves (RFC 2606). Both engines read an empty list as *all domains*."""
_FETCHING_ENGINES: Final = (EngineType.VLLM, EngineType.SGLANG)


def with_request_limits(pod: InstancePod, container: EngineContainer) -> EngineContainer:
    """Returns the container with the switches. `engine.args` and `engine.env` replace them."""
    engine = pod.spec.engine
    variables = container.env
    switches: tuple[str, ...] = ()
    if engine.type is EngineType.VLLM and any(variable["name"] == "PYTHONHASHSEED" for variable in variables):
        switches += ("--prefix-caching-hash-algo=sha256",)
    if engine.type in _FETCHING_ENGINES and pod.serves_http:
        domains = engine.allowed_media_domains or [NO_MEDIA_DOMAIN]
        if domains != [ANY_DOMAIN]:
            # Both parsers take the domains as separate arguments up to the next switch.
            switches = ("--allowed-media-domains", *domains, *switches)
        if engine.type is EngineType.VLLM:
            variables += (env_value("VLLM_MEDIA_URL_ALLOW_REDIRECTS", "0"),)
    return replace(container, args=(*container.args[:1], *switches, *container.args[1:]), env=variables)
