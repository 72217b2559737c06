"""Computes for GPUs, where those of the CPU do not fit: packed for coalesced loads, explicit
workspaces."""
