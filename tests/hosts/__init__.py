"""Hosts that are processes of their own: registered, called over mutual TLS, killed, cut off, cloned, released."""
