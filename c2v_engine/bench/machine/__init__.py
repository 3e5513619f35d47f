"""The machine: what it is, what it can do at best, and its clocks."""
