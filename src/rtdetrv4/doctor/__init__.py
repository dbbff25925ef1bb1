"""The doctor: what is wrong with a data set, where, what training does about it, and what to do."""
