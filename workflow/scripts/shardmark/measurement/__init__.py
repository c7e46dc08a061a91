"""What is measured of a cell, and the rules by which a measurement counts."""
