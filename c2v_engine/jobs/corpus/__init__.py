"""Corpora: many files in, a folder of shards out, every row exactly once.

What is done is cut up before anything runs (``plan``), read block by block (``reading``), embedded
and written unit by unit (``runner``, ``shards``), and recorded in a manifest (``manifest``) by the
one process that holds the folder's lock. A unit is written whole or not at all.
"""
