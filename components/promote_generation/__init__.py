"""Moves the traffic to a generation that passed, lets the old one finish, and remembers both."""
