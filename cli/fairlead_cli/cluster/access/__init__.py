"""Access to a cluster: `connection` (kubeconfig and API server), `exec_plugin` (login),
`access_reviews`, `permissions`.
"""
