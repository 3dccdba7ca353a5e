"""Ray: shard actors, ingest at scale, and the reconcile loop that drives them."""
