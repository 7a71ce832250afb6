"""Where the times of operators come from: measured by others, operator tables, a roofline."""
