"""Thin wrappers of system calls, and probes that find out by doing; the only ctypes."""
