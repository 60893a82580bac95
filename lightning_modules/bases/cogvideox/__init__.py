"""CogVideoX 5B, image to video: everything that is known of this base alone."""
