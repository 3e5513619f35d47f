"""The output of a job: its folder, what stands in it, and who may write there."""
