"""How pixels become an answer: recipes, training, evaluation, the gate, the registry, verified versions."""
