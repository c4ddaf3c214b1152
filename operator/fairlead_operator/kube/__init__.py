"""The operator's contact with the cluster.

- `watches`: informers and the list of models.
- `kopf_watch`: models through kopf, with its session and login.
- `object_cache`: the observed objects, by model, and the names that they claim.
- `writer`: server-side apply and deletion.
- `leader_election`: work while the lease is held.
"""
