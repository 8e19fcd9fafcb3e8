"""Figures: rows in, a matplotlib figure out. Nothing here asks the database or writes to the terminal."""
