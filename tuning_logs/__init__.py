"""Committed tuning records of machines we had; `compile` uses them where no log is named."""
