"""Measures the proxy beside those that people would use instead: ``python -m bench``."""
