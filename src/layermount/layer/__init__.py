"""What a layer is on disk; shared by engine, images and store."""
