"""The section `probing`: sparse probing on labelled sets, pooled over positions, and by the protocol of SAEBench."""
