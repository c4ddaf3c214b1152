"""Accuracy of the fleet simulator.

fleet_vs_http: against gateways with simulated engines over HTTP
vllm_fit: against vLLM engines, with a profile that a gateway learned
"""
