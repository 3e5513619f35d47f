"""Jobs: corpora on disk in, embeddings on disk out."""
