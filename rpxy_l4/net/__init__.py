"""The one place that creates sockets and descriptors and sets their options."""
