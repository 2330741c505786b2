"""The `layermount` command: parsing and printing, no logic."""

import gc

# Start-up makes thousands of objects that stay; looking for garbage among them costs a tenth of it.
gc.disable()
