"""One measured quantity a file: tensor(s) → scalars, with its unit and definition."""
