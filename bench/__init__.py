"""Measurements. Each prints the command, the machine and the commit that it comes from."""
