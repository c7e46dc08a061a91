"""Results of cells: which ones count, how each planned cell ended, and the tables of them."""
