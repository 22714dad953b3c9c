"""Stand-ins for services outside: real servers on loopback that answer what a test tells them to."""
