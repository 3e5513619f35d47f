"""Where each figure of the pages comes from: a function for each kind, and a check for the rest.

``marks`` is the notation in Markdown, ``registry`` joins names with functions, ``typed`` looks for
figures that are not marked, ``allowed.yaml`` lists what it passes and why. The other modules hold
the functions, by what was measured; importing this package registers them.
"""

from figures_registry import corpora, engine, engine_tables, kernels, mini, peers, runs, serving

__all__ = ["corpora", "engine", "engine_tables", "kernels", "mini", "peers", "runs", "serving"]
