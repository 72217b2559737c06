"""What is computed: convolution problems, their grammar and sources, the float64 answer."""
