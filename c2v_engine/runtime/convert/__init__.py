"""Making checkpoints of this engine from sentence-transformers' decoder embedding models."""
