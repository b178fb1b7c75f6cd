"""Models that run in a process of their own, one module per library: ``backends.remote`` starts it.

They import NumPy, their library and nothing of the server, so that they run in another environment.
"""
