"""Several gateways, or workers of one, that act as one.

simulated_gateways: in the fleet simulator
gateway_processes: as processes, over HTTP and Redis
knowledge: the worth of knowing engines' caches, in the fleet simulator (``knowledge_scenarios``)
knowledge_processes: the same with real gateways
worker_scaling: workers of one gateway, each kept busy
"""
