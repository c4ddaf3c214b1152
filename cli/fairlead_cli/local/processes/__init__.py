"""One child process of a stack: `managed_process` (restarts) → `child_process` → `child_exec` (runs
in the child).

`reaper` and `reaper_process` end all children when the supervisor dies. `readiness_probe` and
`embedded_redis` serve them.
"""
