"""From a Connection to what libvirt is given on this host, proven; and how healthy the way is."""
