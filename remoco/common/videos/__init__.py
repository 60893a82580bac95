"""Video files: those of anybody, decoded as a player shows them, and ours, written whole or not at all."""
