"""Wan 2.1 I2V and 2.2 TI2V: everything that is known of these bases alone."""
