"""The solver: one problem, validated; one policy; an engine that runs it."""
