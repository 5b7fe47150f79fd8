"""libvirt and, through it, QEMU. Nothing else imports libvirt."""
