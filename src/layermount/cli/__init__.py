"""The `layermount` command: parsing and printing, no logic."""
