"""Access to a cluster: `connection` (kubeconfig, login and API server), `port_forward` (ports of
pods), `permissions`.
"""
