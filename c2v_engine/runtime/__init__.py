"""The data path of a batch: tokenise, pack, run, collect."""
