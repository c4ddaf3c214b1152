"""Traffic of coding agents: their wire forms through real gateways.

benchmark: the arms, a run on processes, and the rows
wire_forms: requests of a session in each dialect, and what their streams say
"""
