"""The version, in one place: the package metadata, ``--version`` and ``build_info`` read it from here."""

VERSION = "0.1.0"
