"""The engine benchmark: whole models from texts to vectors, against stock transformers."""
