"""Corpora: many files in, a folder of shards out, every row exactly once.

What is done is cut up before anything runs and read block by block (``source``), embedded and
written unit by unit (``work``), and recorded in a manifest by the one process that holds the
folder's lock (``folder``). A unit is written whole or not at all.
"""
