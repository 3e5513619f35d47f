"""The kernel benchmark: every op of ``c2v_engine.kernels`` against what the machine can do.

``cases`` lists the ops with their sizes, ``providers`` who computes them, ``agreement`` refuses a
wrong one, ``clock`` takes the device's time, ``ceilings`` what the machine copies and multiplies at
best, ``measure`` puts these together for a case, and ``record`` keeps every result as it comes.
"""
