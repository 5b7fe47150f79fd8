"""The client for threads, generated from the package `aio`; only `seam` is written by hand."""
