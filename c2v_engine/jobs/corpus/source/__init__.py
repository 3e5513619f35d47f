"""The input of a job: files that are found, cut into units, and read in blocks of rows."""
