"""A development broker and a small plant to connect to it: no production parts, and nothing of the server in them."""
