"""Kept copy-on-write views: where upper and description live, and running a command in one."""
