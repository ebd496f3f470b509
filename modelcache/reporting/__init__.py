"""What the metrics say, for people and programs: sums, CSV, a page, Prometheus's text."""
