"""What is on the disk. Nothing outside sees a byte that is not verified, except as a partial."""
