"""The host interface and its implementations: this machine (`local`), later another one (`remote`)."""
