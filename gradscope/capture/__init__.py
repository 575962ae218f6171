"""Recording a training run: hooks on one step's graph, what they gather, the scope's lifecycle."""
