"""The way out over HTTP: requests of many clients, batched by tokens for one engine."""
