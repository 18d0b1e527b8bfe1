"""What happens to one weight or activation: statistics, ranges, grids, codebooks, masks."""
