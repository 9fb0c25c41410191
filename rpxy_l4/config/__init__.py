"""The configuration file: its model, its positions, its errors, and its compilation to a snapshot."""
