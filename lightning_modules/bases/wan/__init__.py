"""Wan 2.1 I2V, 2.2 TI2V and 2.2 A14B: everything that is known of these bases alone."""
