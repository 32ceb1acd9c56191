"""Grading a class. Nothing of the library or the book imports this package."""
