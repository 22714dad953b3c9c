"""`python server.py doctor`: everything from the settings to the broker is looked at, and what to do next is said."""
