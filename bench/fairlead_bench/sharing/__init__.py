"""Several gateways, or workers of one, that act as one.

simulated_gateways: in the fleet simulator
gateway_processes: as processes, over HTTP and Redis
knowledge_processes: the worth of knowing engines' caches, as processes (``knowledge_scenarios``)
worker_scaling: workers of one gateway, each kept busy
"""
