"""The kernel path: flows that are decided are forwarded by an eBPF program, and never come to user space.

``path.bpf.c`` is the program, ``path.bpf.o`` what clang made of it. The supervisor loads it (``path``) and attaches it
to interfaces; workers put flows there and take them back (``flows``).
"""
