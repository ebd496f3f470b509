"""What is remembered of downloads, in SQLite: never needed, never in the way."""
