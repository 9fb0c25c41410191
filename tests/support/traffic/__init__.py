"""Clients that go on and on while something happens to the proxy, and count what they lost."""
