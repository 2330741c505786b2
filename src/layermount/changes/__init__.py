"""What an upper changed, told path by path."""
