"""One module for each protocol: pure functions from first bytes to a verdict."""
