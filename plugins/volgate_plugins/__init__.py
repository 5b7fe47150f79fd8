"""The backends that ship with Volgate; each is found through its entry point like any other."""
