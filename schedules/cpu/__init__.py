"""Templates for CPUs with SIMD units (x86 AVX2 and AVX-512, AArch64 NEON)."""
