"""The code that all Fairlead components share; it imports none of them.

Start with `api` (the custom resources) and `fleet` (what is routable). Then:

- `tenants`: who may call which models, and how much.
- `manifests`: reads, checks and lints YAML files.
- `engines`: one adapter per engine, and the containers that run engines in pods.
- `kube`: a client of the Kubernetes API.
- `runtime`: clock, tasks, logging, HTTP client and other process plumbing.
- `http_access`: rules that close a management port to web pages.
- `errors`, `limits`, `settings`, `units`, `names`: small shared vocabularies.
- `decision`, `engine_profile`, `request_shapes`: values that several components exchange.
- `management_api`: the answers of a gateway to people and tools.
"""

__version__ = "0.2.0"
