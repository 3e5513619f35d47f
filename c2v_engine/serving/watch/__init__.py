"""To watch a server: metrics, a log of requests, traces, its status, and a page that shows it."""
