"""Video files: untrusted ones, decoded as a player shows them, and ours, written whole or not at all."""
