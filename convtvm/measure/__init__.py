"""Candidates built, checked and timed in child processes that may die of them."""
