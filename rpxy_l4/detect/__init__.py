"""The engines: many probes, one verdict about a client."""
