"""A worker: one event loop, the listening sockets of one slot, and every session they bring."""
