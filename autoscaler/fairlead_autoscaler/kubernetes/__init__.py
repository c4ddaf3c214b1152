"""The autoscaler in a Kubernetes cluster.

- `manager`: all parts of the process, with the leader election.
- `target`: informers of models, workloads and pods; `cluster_state`: their state as the core needs
  it.
- `scale_writer`: writes numbers of replicas, sleep marks and deletion costs.
- `sleep_controller`: puts engines to sleep and wakes them; `sleep_labels`: the marks on their pods.
- `status_writer`: conditions and events of a model, from `conditions` and `slo_attainment`.
"""
