"""The maps of a run as files that other people's viewers open, in the space of the volumes that they were made of."""
