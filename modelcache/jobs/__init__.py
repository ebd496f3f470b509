"""What looks after the cache by itself, at times that the settings name."""
