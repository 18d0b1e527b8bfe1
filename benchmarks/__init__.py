"""Scripts that measure what an issue asked for, on the real nets; each prints its table and writes JSON under results/."""
