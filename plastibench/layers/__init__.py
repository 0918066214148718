"""All that knows modules from the inside: units, their dataflow, their statistics, and surgery on them."""
