"""A Ray of this machine's own, for the tests that need one."""

from __future__ import annotations

import contextlib
import logging
import os
import sys


@contextlib.contextmanager
def local_ray(cpus):
    """Start it with so many CPUs, whatever the machine has, and end it."""
    before = os.environ.get("PYTHONPATH")
    # Actors find the modules of the tests as the tests do.
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray
    import ray.data

    ray.init(
        address="local",  # not one that happens to run here
        num_cpus=cpus,
        num_gpus=0,
        object_store_memory=200 * 2**20,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    try:
        ray.data.DataContext.get_current().enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        yield
    finally:
        ray.shutdown()
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
