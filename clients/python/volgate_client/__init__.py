"""The Python client of Volgate: typed errors, retries with a request id, waits, paging, images with progress."""

from volgate_client.client import Client
from volgate_client.errors import VolgateError

__all__ = ["Client", "VolgateError"]
