"""Dead letters: their index, redrive and discard."""
