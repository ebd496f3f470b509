"""What a notebook has besides fetching: a dashboard."""
