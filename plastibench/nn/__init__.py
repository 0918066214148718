"""Everything that inspects or edits modules from the inside: units, dataflow, statistics, reinitialization."""
