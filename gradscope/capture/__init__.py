"""Everything that touches a live model: graph walk, names, hooks, the scope's lifecycle."""
