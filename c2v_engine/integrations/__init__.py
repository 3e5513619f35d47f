"""The engine as a model of other libraries."""
