"""The parts of ../compare.py, each with one concern."""
