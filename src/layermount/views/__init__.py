"""Kept copy-on-write views: where a view's upper and description live, and running a command in one."""
