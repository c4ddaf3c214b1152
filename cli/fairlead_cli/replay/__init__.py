"""``fairlead replay`` and ``demo``: an open-loop replay of a trace against a gateway, compared with
a simulation.

Reading order: `traffic` (requests) → `client` (sends them) → `measurement` and `validity` (is the
run valid?) → `fleet_simulation` → `report`. `live_run` replays against a running gateway;
`comparison` runs presets in a `stack_process`.
"""
