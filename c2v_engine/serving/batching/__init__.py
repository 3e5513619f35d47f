"""From texts of many requests to batches of one engine; knows nothing of HTTP."""
