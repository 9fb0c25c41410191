"""A self-contained demonstration: the real proxy between small targets and clients."""
