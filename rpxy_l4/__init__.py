"""A layer-4 (TCP and UDP) reverse proxy that multiplexes protocols on one port."""
