"""A guest with Debian's own kernel and every storage module, in which tests run as if they ran outside: see docs/kernel-lab.md."""
