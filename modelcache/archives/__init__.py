"""Reading archives that nobody vouches for: what comes out is checked and counted, never what they promise."""
