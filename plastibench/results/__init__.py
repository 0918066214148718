"""`result.json`: its type, reading and writing, and the statistics computed from it."""
