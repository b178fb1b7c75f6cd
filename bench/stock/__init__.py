"""The fraud job as PyFlink's own documentation would write it: the baseline of the benchmarks."""
