"""Lightning callbacks: averages and snapshots, sample grids, figures and reports, sample writers."""
