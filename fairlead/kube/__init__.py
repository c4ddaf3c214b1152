"""A thin, typed client of the Kubernetes API: requests that are retried, watches that heal, leases, events.

``Access`` says where the API server is and who we are, ``KubeApi`` speaks to it, ``Informer`` keeps a copy of a kind, ``Election``
finds the one who works, ``Recorder`` tells people. Import from the modules: whoever needs only ``resource`` loads no HTTP client.
"""
