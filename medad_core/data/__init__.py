"""From files on disk to upright 8-bit slices: discovery, partial reading, scaling, patient split, phantom cohort."""
