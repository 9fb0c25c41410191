"""The admin process: metrics, health endpoints and name resolution."""
