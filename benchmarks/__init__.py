"""Speed beside peers: ratios of medians, interleaved in one process, at equal work. Run with `etude bench`."""
