"""Config, checkpoint and the plain packed forward: no batching policy, no threads."""
