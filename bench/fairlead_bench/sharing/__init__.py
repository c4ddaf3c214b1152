"""Several gateways that act as one.

simulated_gateways: in the fleet simulator
gateway_processes: as processes, over HTTP and Redis
"""
