"""Traffic of coding agents: wire forms through real gateways, long sessions in the simulator.

benchmark: the arms, a run on processes, and the rows
fleet_simulator: all presets on long sessions with tools and sub-agents
wire_forms: requests of a session in each dialect, and what their streams say
"""
