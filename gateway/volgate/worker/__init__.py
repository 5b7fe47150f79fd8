"""Plugins in processes of their own: a library that hangs, crashes or leaks takes its pool with it and nothing else.

`process` runs in the worker, `link` is the gateway's end of one worker, `supervisor` keeps a pool's workers alive, `proxy` is the
backend that the gateway calls. What travels is in `frames`; how the facets' arguments and answers travel is in `facet_calls`.
"""

from volgate import plain_logs

plain_logs.load()  # before the modules here import it
