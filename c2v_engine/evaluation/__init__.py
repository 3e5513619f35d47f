"""How good embeddings are: retrieval on data in the BEIR layout, beside BM25."""
