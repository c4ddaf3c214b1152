"""Test support of all components: real small programs instead of mocks. Not part of the wheel.

- `waiting`, `processes`, `local_stack`: time and processes.
- `forks/`: forks in place of new interpreters, for programs that tests start.
- `http/`, `kube/`, `redis/`, `engines/`: servers that tests control.
- `gateway/`, `kvstore/`, `autoscaler/`, `sim/`, `cli/`: harnesses of components.
- `transcripts/`: recordings of a real vLLM, replayed against the simulated engine and compared.
- `fleet_faults/`: seeded fault runs of the fleet simulator with an invariant checker.
- `prometheus`, `reports`: metrics rules and results of long runs.
"""
