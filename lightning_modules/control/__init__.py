"""How motion enters a base: motion encoder, injections, LoRA."""
