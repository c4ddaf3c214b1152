"""Several gateways, or workers of one, that act as one.

simulated_gateways: in the fleet simulator
gateway_processes: as processes, over HTTP and Redis
worker_scaling: workers of one gateway, each kept busy
"""
