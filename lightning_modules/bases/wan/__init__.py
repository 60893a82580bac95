"""Wan 2.1, image to video: everything that is known of this base alone."""
