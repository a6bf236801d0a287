"""The LLM: prompts, engines, and the grammar of its answers."""
