"""The supervisor: owns configuration, listening sockets and children. Touches no client bytes."""
