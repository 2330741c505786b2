"""The engine as a FUSE filesystem: mounted, served by a process of its own, asked and ended."""
