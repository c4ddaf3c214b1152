"""One child process of a stack: `managed_process` (restarts) → `child_process` → `child_exec` (runs
in the child).

`reaper` and `reaper_process` end all children when the supervisor ends. `readiness_probe` tests
whether a process answers; `embedded_redis` is the Redis of local mode.
"""
