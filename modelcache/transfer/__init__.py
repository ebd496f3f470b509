"""Moves bytes from sources into a partial until every one of them is proven."""
