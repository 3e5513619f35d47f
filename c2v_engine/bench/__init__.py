"""How fast the engine is, against what the machine, other libraries and other methods can do."""
