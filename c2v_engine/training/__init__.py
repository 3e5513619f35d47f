"""Training: checkpoints made and adapted, on sentence-transformers' trainer.

The model that is trained is ``reference.py`` as a sentence-transformers module; what comes out is
a checkpoint that the engine loads as it is.
"""
