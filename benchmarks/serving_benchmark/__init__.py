"""The parts of the server's load test: requests, a light client, the processes, the report."""
