"""fMRI decoding: what was being looked at, by a brain decoder, a captioner and CrossFlow."""
