"""Rules of connections to engines whose endpoints Kubernetes objects name."""

from urllib.parse import urlsplit

import pytest

from fairlead.engines.credentials import EngineCredentials
from fairlead.errors import Unavailable
from fairlead.fleet.model import Fleet, Instance
from fairlead.runtime.http_client import fetch
from fairlead_testing.engines.scripted import scripted_engine


async def test_control_request_to_an_endpoint_on_loopback_is_refused() -> None:
    credentials = EngineCredentials({}, lambda: 0.0)
    async with scripted_engine() as engine:
        url = f"http://localhost:{urlsplit(engine.url).port}"
        endpoint = Instance("e", "b", "steal", "main", url, checks_address=True)
        credentials.update_fleet(Fleet(1, 1, {}, {"b/steal": (endpoint,)}))
        with pytest.raises(Unavailable, match="the endpoint localhost is refused: it is a loopback address"):
            await fetch(url, timeout_seconds=5, max_bytes=9, rules=credentials.connection_rules(endpoint))
        assert engine.connections == 0


async def test_endpoint_that_resolves_to_a_pod_or_service_of_another_model_is_refused() -> None:
    credentials = EngineCredentials({}, lambda: 0.0)
    theirs = Instance("p", "a", "tiny", "main", "http://10.0.0.1:8000")
    endpoint = Instance("e", "b", "steal", "main", "http://engine.example:8000", checks_address=True)
    credentials.update_fleet(Fleet(1, 1, {}, {"a/tiny": (theirs,), "b/steal": (endpoint,)}))
    assert credentials.connection_rules(theirs).resolve is None
    resolve = credentials.connection_rules(endpoint).resolve
    assert resolve is not None
    with pytest.raises(OSError, match="a pod or Service that another model uses"):
        await resolve("10.0.0.1", 8000)
    assert await resolve("10.0.0.2", 8000) == "10.0.0.2"
    addresses = frozenset({"10.0.0.2"})
    credentials.update_fleet(Fleet(2, 1, {}, {"a/tiny": (theirs,), "b/steal": (endpoint,)}, addresses))
    with pytest.raises(OSError, match="a pod or Service that another model uses"):
        await resolve("10.0.0.2", 8000)
