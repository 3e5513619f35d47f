"""The doing of a job: units through engines, here, in worker processes or on a cluster."""
