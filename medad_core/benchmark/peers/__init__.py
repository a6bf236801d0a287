"""What people would use instead of medad, one module a work; a library of the extra `bench` is imported by its peer."""
