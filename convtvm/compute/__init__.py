"""TE computes, one module an algorithm: what is computed, never how it is scheduled."""
