"""The Kubernetes objects of one pool, one module per kind."""
