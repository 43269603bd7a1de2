"""What came of runs: scores, statistics, tables, pictures."""
