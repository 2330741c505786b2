"""Overlay semantics; knows no host, no source of layers, no command line."""
