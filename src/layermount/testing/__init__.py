"""Public tools for tests: trees as data, and oracles to compare an overlay with."""
