"""``fairlead replay`` and ``demo``: an open-loop replay of a trace against a gateway, compared with
a simulation.

Reading order: `traffic` (requests) → `client` (sends them) → `fleet_simulation` → `report`.
`command` replays against a running gateway; `demo` runs presets in a stack of its own.
"""
