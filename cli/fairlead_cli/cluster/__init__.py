"""Commands against a cluster, over the API server.

Reading order: `access` (kubeconfig, login, permissions) → `facts_collector` (reads the cluster) →
`facts` → `checks` (``fairlead check``), `status` (``fairlead status``), `bundle` (``fairlead
support-bundle``).

`installation` reaches gateways, autoscalers and Redis for the verbs that talk to them.

Shared: `pod_http` (queries pods over forwarded ports), `object_fields` (fields of
objects, and values that could not be read, with the reason).
"""
