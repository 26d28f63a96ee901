"""Which lambda and which donor, by labels or by agreement with the float answers."""
