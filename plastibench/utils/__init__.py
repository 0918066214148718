"""Helpers that know nothing about plasticity: files, seeds, provenance, tables, progress."""
