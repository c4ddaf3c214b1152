"""Attacks on the control plane and the gateway, and what each of them costs others.

benchmark: the command line, and the rows with their goals
control_answers: a nested gzip bomb as an engine's or gateway's answer
unread_connections: clients that send requests and never read
fair_shares: a flood of one caller, and a manifest with thousands of endpoints
engine_ejections: a poison request, and a gateway without descriptors
body_stalls: the largest bodies of every kind
index_turns: batches of KV events of a hostile engine
"""
