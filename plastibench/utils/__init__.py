"""General helpers: files, seeds, process setup, provenance, tables, progress, TensorBoard."""
