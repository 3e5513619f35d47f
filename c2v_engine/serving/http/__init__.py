"""The service over HTTP: the routes of OpenAI and of text-embeddings-inference."""
