"""How fast the stages are, beside what the machine could do; a benchmark measures, a test never does."""
