"""Volgate: a storage gateway for KVM/libvirt hosts."""
