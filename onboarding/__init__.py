"""`python server.py setup` and `client-config`: settings and entries, asked for, tried, and written without a loss."""
