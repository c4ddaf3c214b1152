"""Access to a cluster: `connection` (kubeconfig and API server), `exec_plugin` (login),
`port_forward` (ports of pods), `access_reviews`, `permissions`.
"""
