"""Ways to show an overlay to every program."""
