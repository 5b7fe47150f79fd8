"""The client for asyncio. The package `sync` is generated from this one (clients/python/generate_sync.py)."""
