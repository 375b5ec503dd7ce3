"""How each endpoint of OpenAI's writes an answer: pure functions of deltas and completions."""
