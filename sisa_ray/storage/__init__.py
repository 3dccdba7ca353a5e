"""Object storage, the commit log, slice tables and checkpoints of a run."""
