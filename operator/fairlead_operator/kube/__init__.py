"""The operator's contact with the cluster.

- `watches`: informers and the list of models.
- `kopf_watch`, `kopf_session`, `kopf_login`: models through kopf.
- `object_cache`: the observed objects, by model; `name_claims`: the names that they claim.
- `writer`: server-side apply and deletion.
- `leader_election`: work while the lease is held.
"""
