"""The store: requests in flight and their outcome, attachments and their undo, and an index of what the storages hold.

SQLAlchemy Core on SQLite. One writer thread commits for everybody (group commit); readers go beside it.
"""
