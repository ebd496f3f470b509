"""modelcache: one verified, resumable cache for model files."""

__version__ = "0.1.0"
