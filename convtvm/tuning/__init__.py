"""The search: what to measure next, when to stop, and the last word on the best."""
